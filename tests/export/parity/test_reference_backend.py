"""The model as a backend: drafted tokens save runs and never change a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid_deploy.export.parity.reference_backend import FullRerun, FullRerunDecoding
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from tests.conftest import make_tiny

LENGTH = 8
IMAGES = np.random.default_rng(0).standard_normal((2, 1, 8, 32)).astype(np.float32)


class Counted(nn.Module):
    """The tiny model, which counts the tokens that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.runs = make_tiny().eval(), list[int]()

    def encode(self, image: Tensor) -> Tensor:
        return self.model.encode(image)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        self.runs.append(tokens.shape[1])
        return self.model.decode(tokens, memory)


class Drafts(FullRerun):
    """The tiny model as drafting graphs, wrong from a length on."""

    def __init__(self, wrong_from: int) -> None:
        super().__init__(make_tiny().eval(), LENGTH)
        self.wrong_from = wrong_from

    def start(self, inputs: Mapping[str, NDArray[Any]]) -> FullRerunDecoding:
        decoding = super().start(inputs)
        plain = decoding._logits

        def reversed_later(last: IntArray) -> FloatArray:
            logits = plain(last)
            return -logits if last.max() >= self.wrong_from else logits

        decoding._logits = reversed_later  # type: ignore[method-assign]
        return decoding


def decoded(backend: FullRerun) -> tuple[list[FloatArray], list[NDArray[np.int64]]]:
    decoding, tokens = backend.start({"image": IMAGES}), [np.array([1, 2])]
    logits = [decoding.step(tokens[0], np.zeros(2, np.int64))]
    for place in range(1, LENGTH):
        tokens.append(logits[-1].argmax(-1))
        logits.append(decoding.step(tokens[-1], np.full(2, place)))
    return logits, tokens


@pytest.mark.parametrize(("wrong_from", "runs"), [(LENGTH, 1), (3, 5), (0, LENGTH)])
def test_drafts_save_runs_and_change_no_token(wrong_from: int, runs: int) -> None:
    model = Counted()
    expected_logits, expected = decoded(FullRerun(make_tiny().eval(), LENGTH))
    logits, tokens = decoded(FullRerun(model, LENGTH, Drafts(wrong_from)))
    assert np.array_equal(tokens, expected)
    assert np.allclose(logits, expected_logits, atol=1e-5)
    assert len(model.runs) == runs


def test_a_changed_token_is_run_again() -> None:
    decoding = FullRerun(make_tiny().eval(), LENGTH, Drafts(LENGTH)).start({"image": IMAGES})
    plain = FullRerun(make_tiny().eval(), LENGTH).start({"image": IMAGES})
    for place, token in enumerate([1, 4, 2, 4]):  # as a rule that forbids tokens chooses
        both = np.full(2, token)
        arguments = (both, np.full(2, place))
        assert np.allclose(decoding.step(*arguments), plain.step(*arguments), atol=1e-5)

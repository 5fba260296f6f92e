"""What the comparison accepts as rounding, how it treats ties, and which lengths it covers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid_deploy.bundle.manifest import GenerationDefaults
from hybrid_deploy.errors import ParityError
from hybrid_deploy.export.parity import compare, float32_error, reference_rows
from hybrid_deploy.export.parity.compare import (
    compare_greedy,
    compare_prefill,
    compare_random_prompts,
)
from hybrid_deploy.export.parity.float32_error import (
    EPSILON,
    ESTIMATED_SHARE,
    LEAST_SHARE,
    accepted_difference,
    differences,
    own_error,
    size_of,
)
from hybrid_deploy.export.parity.parity import Parity
from hybrid_deploy.export.parity.reference_backend import FullRerun, FullRerunDecoding
from hybrid_deploy.export.parity.reference_rows import lengths_to_run
from hybrid_deploy.export.parity.special_tokens import TokenChoice
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray

VOCABULARY, LENGTH = 13, 40
GENERATION = GenerationDefaults((1,), (), 0, LENGTH)


class Summing(nn.Module):
    """Logits from a running mean of embeddings and the memory; `offset` cancels out."""

    def __init__(self, offset: float = 0.0, *, changes_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder = nn.Linear(4, 8)
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.head = nn.Linear(8, VOCABULARY)
        self.offset, self.changes_at = offset, changes_at

    def encode(self, features: Tensor) -> Tensor:
        memory: Tensor = self.encoder(features)
        return memory

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        length = tokens.shape[1]
        counts = torch.arange(1, length + 1)[:, None]
        rows = self.embedding(tokens).cumsum(1) / counts + memory[:, None]
        logits: Tensor = (self.head(4 * rows) + self.offset) - self.offset
        if self.changes_at is not None and length >= self.changes_at:
            logits = logits * 1.5
        return logits


class EditedLogits(FullRerun):
    """The model as graphs whose logits are changed after some numbers of tokens."""

    def __init__(self, model: nn.Module, length: int, change: Any) -> None:
        super().__init__(model, LENGTH)
        self.length, self.change = length, change

    def start(self, inputs: Mapping[str, NDArray[Any]]) -> FullRerunDecoding:
        decoding = super().start(inputs)
        plain = decoding._logits

        def edited(last: IntArray) -> FloatArray:
            logits: FloatArray = plain(last).copy()
            for row in np.flatnonzero(last + 1 == self.length):
                self.change(logits[row])
            return logits

        decoding._logits = edited  # type: ignore[method-assign]
        return decoding


class InDouble(nn.Module):
    """A model computed in float64: graphs without a rounding error."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model.double()

    def encode(self, features: Tensor) -> Tensor:
        memory: Tensor = self.model.encode(features.double())
        return memory

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        logits: Tensor = self.model.decode(tokens, memory)
        return logits.float()


def inputs(count: int = 2) -> dict[str, NDArray[Any]]:
    return {"features": np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)}


def compare_all(model: nn.Module, backend: FullRerun) -> Parity:
    return compare_random_prompts(model, backend, GENERATION, inputs(), TokenChoice(VOCABULARY))


def test_a_model_is_equal_to_itself() -> None:
    model = Summing().eval()
    parity = compare_greedy(model, FullRerun(model, LENGTH), GENERATION, [inputs()])
    assert (parity.sequences, parity.steps, parity.longest) == (2, 2 * LENGTH, LENGTH)
    assert parity.largest_difference <= parity.accepted_difference < 1e-4


def test_the_rounding_error_of_the_model_is_accepted() -> None:
    model, exact = Summing(3000).eval(), FullRerun(InDouble(Summing(3000)).eval(), LENGTH)
    parity = compare_all(model, exact)
    size = size_of(model.decode(torch.arange(VOCABULARY)[None], torch.zeros(1, 8)).detach().numpy())
    assert parity.largest_difference > LEAST_SHARE * size, "the model's error is measured"
    assert parity.largest_difference > 3000 * EPSILON / 8
    assert parity.accepted_difference < 3000 * EPSILON * 8


def test_the_same_difference_is_refused_where_the_model_is_exact() -> None:
    model, rounding = Summing().eval(), FullRerun(Summing(3000).eval(), LENGTH)
    with pytest.raises(ParityError, match=r"logit of token \d+ is off by|token \d+ instead of"):
        compare_all(model, rounding)


def test_the_error_of_a_large_model_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float32_error, "_LARGEST_MEASURED_BYTES", 0)
    model = Summing().eval()
    assert own_error(model, inputs(), np.ones((2, 3), np.int64)) is None
    monkeypatch.undo()
    assert own_error(model, inputs(), np.ones((2, 3), np.int64)) is not None
    monkeypatch.setattr(float32_error, "_LARGEST_MEASURED_BYTES", 0)

    def change(share: float) -> EditedLogits:
        def add(logits: FloatArray) -> None:
            logits[3] += share * size_of(logits)

        return EditedLogits(model, 5, add)

    compare_all(model, change(0.9 * ESTIMATED_SHARE))
    with pytest.raises(ParityError, match="the logit of token 3 is off by"):
        compare_all(model, change(1.5 * ESTIMATED_SHARE))


def test_a_difference_beyond_rounding_names_the_logit() -> None:
    model = Summing().eval()

    def add(logits: FloatArray) -> None:
        logits[logits.argmin()] += 1e-3

    with pytest.raises(ParityError) as caught:
        compare_greedy(model, EditedLogits(model, 5, add), GENERATION, [inputs()])
    text = str(caught.value)
    assert "in batch 0, sequence 0, after 5 tokens: the logit of token " in text
    assert " is off by 1.0e-03, accepted " in text
    assert "instead of" not in text


def test_another_token_is_named() -> None:
    model = Summing().eval()

    def swap(logits: FloatArray) -> None:
        best, worst = logits.argmax(), logits.argmin()
        logits[[best, worst]] = logits[[worst, best]]

    with pytest.raises(ParityError, match=r"after 7 tokens: token (\d+) instead of (?!\1;)\d+; no"):
        compare_greedy(model, EditedLogits(model, 7, swap), GENERATION, [inputs()])


def test_a_logit_that_is_not_a_number_is_refused() -> None:
    model = Summing().eval()

    def spoil(logits: FloatArray) -> None:
        logits[logits.argmin()] = np.nan

    with pytest.raises(ParityError):
        compare_greedy(model, EditedLogits(model, 2, spoil), GENERATION, [inputs()])


class Tied(Summing):
    """Two tokens whose logits differ by less than rounding, and lead all others."""

    def __init__(self, gap: float) -> None:
        super().__init__()
        self.gap = gap

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        logits = super().decode(tokens, memory)
        best = logits.amax(-1, keepdim=True) + 1
        return torch.cat([best, best - self.gap, logits[..., 2:]], -1)


def swap_first_two(logits: FloatArray) -> None:
    logits[[0, 1]] = logits[[1, 0]]


def test_the_other_token_of_a_tie_is_accepted_and_both_go_on_with_the_models() -> None:
    model = Tied(1e-6).eval()
    parity = compare_greedy(model, EditedLogits(model, 6, swap_first_two), GENERATION, [inputs()])
    assert parity.ties == 2, "one for each sequence"
    assert parity.steps == 2 * LENGTH

    read: list[int] = []

    class Recording(EditedLogits):
        def start(self, inputs: Mapping[str, NDArray[Any]]) -> FullRerunDecoding:
            decoding = super().start(inputs)
            step = decoding.step

            def recorded(token: IntArray, position: IntArray) -> FloatArray:
                if position[0] == 7:
                    read.append(int(decoding._tokens[0, 6]))
                return step(token, position)

            decoding.step = recorded  # type: ignore[method-assign]
            return decoding

    compare_greedy(model, Recording(model, 6, swap_first_two), GENERATION, [inputs(1)])
    assert read[-1] == 0, "the model's token, not token 1 of the graphs"


def test_a_gap_wider_than_rounding_is_no_tie() -> None:
    model = Tied(1e-3).eval()
    with pytest.raises(ParityError, match=r"after 6 tokens: token 1 instead of 0; no bundle"):
        compare_greedy(model, EditedLogits(model, 6, swap_first_two), GENERATION, [inputs()])


@pytest.mark.parametrize("length", range(1, LENGTH + 1))
def test_a_step_is_compared_after_every_number_of_tokens(length: int) -> None:
    model = Summing().eval()

    def add(logits: FloatArray) -> None:
        logits[0] += 0.1

    with pytest.raises(ParityError, match=f"after {length} tokens: "):
        compare_all(model, EditedLogits(model, length, add))


@pytest.mark.parametrize("products", [1e11, 0], ids=["every length", "chosen lengths"])
@pytest.mark.parametrize("changes_at", [2, 17, 27, LENGTH])
def test_a_program_that_changes_at_a_length(
    changes_at: int, products: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of the user's own may change with its position, as the decode beside it does."""
    monkeypatch.setattr(reference_rows, "_EVERY_LENGTH_PRODUCTS", products)
    monkeypatch.setattr(compare, "has_custom_step", lambda model: True)
    model = Summing(changes_at=changes_at).eval()
    compare_all(model, FullRerun(model, LENGTH))  # graphs that change with it
    for other in (Summing().eval(), Summing(changes_at=1).eval()):  # graphs of one side
        with pytest.raises(ParityError):
            compare_all(model, FullRerun(other, LENGTH))


def test_the_chosen_lengths() -> None:
    model = nn.Linear(1000, 1000)
    assert lengths_to_run(model, 2, 30) == list(range(1, 31))
    chosen = lengths_to_run(model, 2, 700)
    assert chosen[:18] == [*range(1, 18), 31]
    assert chosen[-5:] == [511, 512, 513, 699, 700]


@pytest.mark.parametrize("length", [1, 2, 3, LENGTH // 2, LENGTH - 1, LENGTH])
def test_prefill_is_compared_at_several_lengths(length: int) -> None:
    model = Summing().eval()

    class WrongPrefill(FullRerun):
        def start(self, inputs: Mapping[str, NDArray[Any]]) -> FullRerunDecoding:
            decoding = super().start(inputs)
            prefill = decoding.prefill

            def spoiled(tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
                logits = prefill(tokens, position, last)
                return logits + 0.1 if tokens.shape[1] == length else logits

            decoding.prefill = spoiled  # type: ignore[method-assign]
            return decoding

    arguments = (GENERATION, inputs(), TokenChoice(VOCABULARY))
    assert compare_prefill(model, FullRerun(model, LENGTH), *arguments).sequences == 12
    with pytest.raises(ParityError, match=f"a prefill of {length} tokens"):
        compare_prefill(model, WrongPrefill(model, LENGTH), *arguments)


def test_masked_tokens_do_not_set_the_size() -> None:
    logits = np.array([[3.0, -20.0, -1e9, -np.inf], [1.0, 2.0, -1e4, -3.4e38]], np.float32)
    assert size_of(logits) == 20
    apart = differences(logits, logits * np.float32(1 + 1e-6), 20)
    assert apart.max() < 4e-5
    other = logits.copy()
    other[0, 3] = 0
    assert not differences(logits, other, 20).max() < 1e9


def test_the_accepted_difference_is_bounded_on_both_sides() -> None:
    assert accepted_difference(10, 0) == 10 * LEAST_SHARE
    assert accepted_difference(10, 1e-4) == pytest.approx(8e-4)
    assert accepted_difference(10, 5.0) == pytest.approx(1e-2)
    assert accepted_difference(10, None) == 10 * ESTIMATED_SHARE
    assert accepted_difference(10, np.nan) == 10 * LEAST_SHARE

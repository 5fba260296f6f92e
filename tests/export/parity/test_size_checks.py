"""The sizes that the parity gate runs: each finds a model that is wrong at such a size only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import DimRange
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import ParityError, UnsupportedModelError
from hybrid_deploy.export.model.dynamic_axes import DynamicAxis
from hybrid_deploy.export.parity.size_checks import (
    axis_sizes,
    check_sizes,
    checked_sizes,
    graph_multiples,
)
from hybrid_deploy.export.parity.special_tokens import TokenChoice
from hybrid_deploy.runtime.backends.registry import BackendOptions, load_backend
from tests.conftest import TinyReader, tiny_job

PRIMES = {n for n in range(8, 65) if all(n % d for d in range(2, n))}


class WrongAt(nn.Module):
    """The tiny model, but with another memory for some shapes of its input.

    Args:
        model: the model that was exported.
        wrong: whether the memory differs at a shape.
    """

    def __init__(self, model: TinyReader, wrong: Callable[[torch.Size], bool]) -> None:
        super().__init__()
        self.model = model
        self.wrong = wrong

    def encode(self, image: Tensor) -> Tensor:
        """Returns the memory, (batch, rows, width)."""
        memory: Tensor = self.model.encode(image)
        return memory + 1 if self.wrong(image.shape) else memory

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Returns the logits, (batch, length, vocabulary)."""
        logits: Tensor = self.model.decode(tokens, memory)
        return logits


def check(bundle: Bundle, model: Any, uncertain: tuple[dict[str, int], ...] = ()) -> None:
    job = replace(tiny_job(model), example={"image": torch.randn(2, 1, 8, 16)})
    backend = load_backend("onnxruntime", bundle, "fp32", BackendOptions())
    check_sizes(job, bundle, backend, job.example, TokenChoice(11), uncertain)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda shape: shape[3] == 8,
        lambda shape: shape[3] == 64,
        lambda shape: shape[3] % 2 == 1,
        lambda shape: shape[3] in PRIMES,
        lambda shape: shape[3] % 4 == 3,
        lambda shape: shape[3] % 4 == 1 and shape[3] > 8,
        lambda shape: shape[0] == 1,
        lambda shape: shape[0] == 3,
    ],
    ids=["smallest", "largest", "odd", "prime", "one-below", "one-above", "batch-1", "batch-3"],
)
def test_a_model_that_differs_at_such_a_size_is_refused(
    tiny_bundle: Bundle, tiny_model: TinyReader, wrong: Callable[[torch.Size], bool]
) -> None:
    with pytest.raises(ParityError, match=r"^at inputs of size \dx1x8x\d+, the exported graphs"):
        check(tiny_bundle, WrongAt(tiny_model, wrong).eval())


def test_the_exported_model_passes(tiny_bundle: Bundle, tiny_model: TinyReader) -> None:
    check(tiny_bundle, tiny_model)


def test_uncertain_sizes_are_run(tiny_bundle: Bundle, tiny_model: TinyReader) -> None:
    wrong = WrongAt(tiny_model, lambda shape: shape[3] == 50).eval()
    check(tiny_bundle, wrong)
    with pytest.raises(ParityError, match="at inputs of size 2x1x8x50"):
        check(tiny_bundle, wrong, ({"width": 50},))


def test_a_model_that_fails_within_its_range_is_refused(
    tiny_bundle: Bundle, tiny_model: TinyReader
) -> None:
    def fails(shape: torch.Size) -> bool:
        if shape[3] % 8:
            raise ValueError(f"width {shape[3]} is no multiple of 8")
        return False

    with pytest.raises(UnsupportedModelError) as caught:
        check(tiny_bundle, WrongAt(tiny_model, fails).eval())
    assert str(caught.value).startswith(f"{__file__}:")
    assert "is no multiple of 8; narrow the range, or declare" in str(caught.value)


def test_the_sizes_of_an_axis() -> None:
    assert axis_sizes(DimRange(8, 24, 64), [4, 2]) == [8, 64, 37, 23, 25, 43, 45]
    assert axis_sizes(DimRange(32, 64, 256, 8), [16, 8]) == [32, 256, 152, 136]
    assert axis_sizes(DimRange(3, 4, 5), [4]) == [3, 5]


def test_each_run_takes_other_sizes_of_each_axis_and_other_batches() -> None:
    axes = {
        "image": {
            2: DynamicAxis("height", DimRange(32, 64, 128)),
            3: DynamicAxis("width", DimRange(32, 64, 128)),
        },
        "mask": {1: DynamicAxis("width", DimRange(32, 64, 128))},
    }
    runs = checked_sizes(axes, [16, 8, 4, 2], ({"width": 40, "batch": 1000},))
    assert len(runs) <= 12
    assert {batch for _, batch in runs[:3]} == {1, 2, 3}
    assert runs[0][0] == {"height": 32, "width": 32} and runs[1][0] == {"height": 128, "width": 128}
    assert any(sizes["height"] != sizes["width"] for sizes, _ in runs)
    assert runs[-1] == ({"height": 64, "width": 40}, 16)
    assert checked_sizes({}, [4]) == [({}, 2), ({}, 1), ({}, 3)]


def test_the_multiples_of_a_graph(tiny_bundle: Bundle) -> None:
    encoder = ir.load(tiny_bundle.graph_path("fp32", GraphRole.ENCODER))
    assert graph_multiples(encoder) == [4, 2]

"""Tests what becomes of an exception while PyTorch traces a module."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.errors import ExportError, HybridDeployError, UnsupportedModelError
from hybrid_deploy.export.lowering.torch_to_onnx import onnx_from_torch
from hybrid_deploy.export.trace.size_guards import fixed_size


class Raising(nn.Module):
    """A module that raises when it is traced."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (UnsupportedModelError("model.py:3: why"), UnsupportedModelError, r"^model\.py:3: why$"),
        (
            ValueError("why"),
            ExportError,
            r"test_torch_to_onnx.py:\d+: the model has no ONNX form: why$",
        ),
    ],
)
def test_a_refusal_keeps_its_own_words(error: Exception, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        onnx_from_torch(Raising(error), {"x": torch.zeros(2)}, outputs=["y"], dynamic={}, opset=24)


class Encoder(nn.Module):
    """A module whose `encode` runs a function on its input, (batch, columns)."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)

    def encode(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


def in_bfloat16(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return (x @ x.T).float()


def noisy(x: Tensor) -> Tensor:
    return x + torch.randn(8, generator=torch.Generator().manual_seed(0))


def masked(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, torch.ones(8, 8).triu(1).bool()[0]] = x[:, :1]
    return x


def of_two(x: Tensor) -> Tensor:
    return x if x.shape[0] == 2 else -x


def by_size(x: Tensor) -> Tensor:
    return x * {2: 0.5}.get(x.shape[0], 1.0)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (of_two, r"encode\(\) takes one size only of the batch, .*; compute a whole batch"),
        (
            torch.vmap(torch.tanh),
            r"encode\(\) has no ONNX form: it calls torch\.vmap, .* batch",
        ),
        (
            in_bfloat16,
            r"encode\(\) has no ONNX form: it computes in bfloat16, .*leave out autocast",
        ),
        (noisy, r"encode\(\) has no ONNX form: it draws random numbers from a torch\.Generator"),
        (
            masked,
            r"encode\(\) has no ONNX form: a boolean mask .*use x\.masked_fill\(mask, val",
        ),
        (by_size, r"encode\(\) cannot be traced: a size that varies is looked up in a dict"),
        (
            lambda x: x.median(1, keepdim=True).values,
            r"encode\(\) has no ONNX form: no translation for the operator aten\.median\.dim; w",
        ),
    ],
)
def test_a_failed_translation_names_the_line_and_the_reason(
    function: Callable[[Tensor], Tensor], words: str
) -> None:
    with pytest.raises(
        HybridDeployError, match=rf"^/.*test_torch_to_onnx\.py:\d+: {words}"
    ) as told:
        onnx_from_torch(
            Encoder(function),
            {"x": torch.zeros(2, 8)},
            outputs=["y"],
            dynamic={"x": {0: "batch"}},
            opset=24,
            part="encode()",
        )
    assert "dynamic axis" not in str(told.value)


@pytest.mark.parametrize(
    ("names", "size", "words"),
    [
        ({"batch"}, 2, r"takes 2 only of the batch, .*; compute a whole batch of any size"),
        (
            {"batch", "width"},
            "one size",
            r"takes one size only of width, .*declare no dynamic",
        ),
    ],
)
def test_only_a_declared_axis_may_be_left_out(names: set[str], size: object, words: str) -> None:
    assert re.search(words, fixed_size("encode()", names, size))

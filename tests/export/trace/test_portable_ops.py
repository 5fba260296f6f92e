"""Tests functions and layers that torch.onnx alone does not export."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.export.lowering import torch_to_onnx


class Calling(nn.Module):
    """Calls a function of rows (batch, length, 8)."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, rows: Tensor) -> Tensor:
        return self.function(rows)


class MaskedEncoder(nn.Module):
    """PyTorch's own encoder with a mask that hides nothing, as its translation tutorial has it."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, rows: Tensor) -> Tensor:
        mask = torch.zeros(rows.shape[1], rows.shape[1]).type(torch.bool)
        result: Tensor = self.encoder(rows, mask)
        return result


def exported(module: nn.Module) -> ir.Model:
    rows, axes = {"rows": torch.randn(2, 5, 8)}, {"rows": {0: "batch", 1: "length"}}
    return torch_to_onnx.onnx_from_torch(module, rows, ["result"], axes, 24)


@pytest.mark.parametrize(
    "function",
    [
        lambda rows: rows.abs().sum(-1, keepdim=True).clamp(min=1, max=5e4),
        lambda rows: torch.clamp(rows, -0.5, 1),
    ],
)
def test_bounds_of_two_types(function: Callable[[Tensor], Tensor]) -> None:
    assert any(node.op_type in ("Clip", "Min", "Max") for node in exported(Calling(function)).graph)


def test_a_mask_of_unknown_values(monkeypatch: pytest.MonkeyPatch) -> None:
    exported(MaskedEncoder())
    monkeypatch.setattr(torch_to_onnx, "unknown_masks_are_not_causal", contextlib.nullcontext)
    with pytest.raises(HybridDeployError, match=r"cannot be traced|has no ONNX form"):
        exported(MaskedEncoder())

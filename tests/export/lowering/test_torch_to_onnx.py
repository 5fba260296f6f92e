"""Tests what becomes of an exception while PyTorch traces a module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.errors import ExportError, UnsupportedModelError
from hybrid_deploy.export.lowering.torch_to_onnx import onnx_from_torch


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
            r"test_torch_to_onnx.py:\d+: Raising has no ONNX form: why$",
        ),
    ],
)
def test_a_refusal_keeps_its_own_words(error: Exception, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        onnx_from_torch(Raising(error), {"x": torch.zeros(2)}, outputs=["y"], dynamic={}, opset=24)

"""The custom operator that writes new rows into a cache, and its ONNX translation.

PyTorch   hybrid_deploy::cache_write(cache, rows, position)
ONNX      TensorScatter(cache, rows, position, axis=-2, mode="linear")     opset 24
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnxscript import FLOAT
from onnxscript.values import Opset
from torch import Tensor

from hybrid_deploy.contract import NATIVE_OPSET


@torch.library.custom_op("hybrid_deploy::cache_write", mutates_args=())
def cache_write(cache: Tensor, rows: Tensor, position: Tensor) -> Tensor:
    """Returns a copy of a cache with new rows at each sequence's position.

    Args:
        cache: (batch, heads, capacity, head_dim).
        rows: (batch, heads, length, head_dim).
        position: (batch,) int64, index along the capacity of the first row.
    """
    index = position[:, None] + torch.arange(rows.shape[2])  # (batch, length)
    return cache.scatter(2, index[:, None, :, None].expand(rows.shape), rows)


@cache_write.register_fake
def _(cache: Tensor, rows: Tensor, position: Tensor) -> Tensor:
    return torch.empty_like(cache)


_opset24 = Opset("", 24)


def _tensor_scatter(cache: FLOAT, rows: FLOAT, position: FLOAT) -> Any:
    return _opset24.TensorScatter(cache, rows, position, axis=-2, mode="linear")


def onnx_translations(opset: int) -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """Returns the ONNX translations of the custom operators, as torch.onnx.export takes them.

    Args:
        opset: version of the ONNX operator set; the table is empty before `NATIVE_OPSET`.
    """
    if opset < NATIVE_OPSET:
        return {}
    return {torch.ops.hybrid_deploy.cache_write.default: _tensor_scatter}

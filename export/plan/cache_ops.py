"""Custom operators of the decoder graphs: what they compute, and what they become in ONNX."""

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
    """Returns the cache with new rows written at each sequence's position.

    Args:
        cache: (batch, heads, capacity, head_dim).
        rows: (batch, heads, length, head_dim).
        position: (batch,) int64, where the first row goes.
    """
    index = position[:, None] + torch.arange(rows.shape[2])  # (batch, length)
    return cache.scatter(2, index[:, None, :, None].expand(rows.shape), rows)


@cache_write.register_fake
def _(cache: Tensor, rows: Tensor, position: Tensor) -> Tensor:
    return torch.empty_like(cache)


_opset24 = Opset("", 24)


def _tensor_scatter(cache: FLOAT, rows: FLOAT, position: FLOAT) -> Any:
    return _opset24.TensorScatter(cache, rows, position, axis=-2, mode="linear")


def translations(opset: int) -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """Returns the ONNX translation of each custom operator, as torch.onnx.export takes it."""
    if opset < NATIVE_OPSET:
        return {}
    return {torch.ops.hybrid_deploy.cache_write.default: _tensor_scatter}

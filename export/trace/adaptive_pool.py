"""Adaptive average pooling of an axis of varying size, as a product with a matrix of weights.

ONNX has pooling with a constant window alone. From 5 columns to 2, windows of 3 that overlap:

    input (..., 5)  @  weights (5, 2)       1/3  0
                                            1/3  0
                                            1/3  1/3
                                            0    1/3
                                            0    1/3
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """Computes `adaptive_avg_pool1d`, with its arguments."""
    (count,) = output_size if isinstance(output_size, (tuple, list)) else (output_size,)
    if not _varies(input.shape[-1], count):
        return F.adaptive_avg_pool1d(input, output_size)
    return input @ _weights(input.shape[-1], count)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Computes `adaptive_avg_pool2d`, with its arguments."""
    is_pair = isinstance(output_size, (tuple, list))
    rows, columns = output_size if is_pair else (output_size, output_size)
    rows_vary, columns_vary = _varies(input.shape[-2], rows), _varies(input.shape[-1], columns)
    if not rows_vary and not columns_vary:
        return F.adaptive_avg_pool2d(input, output_size)
    if columns_vary:
        pooled = input @ _weights(input.shape[-1], columns)
    else:
        pooled = F.adaptive_avg_pool2d(input, (None, columns))
    if rows_vary:
        return _weights(input.shape[-2], rows).T @ pooled
    return F.adaptive_avg_pool2d(pooled, (rows, None))


def _varies(size: int | torch.SymInt, count: int | None) -> bool:
    """Returns whether windows of varying size make a constant number of values, more than one."""
    return isinstance(size, torch.SymInt) and isinstance(count, int) and count > 1


def _weights(size: Any, count: int) -> Tensor:
    """Returns the share of each value in each mean, (size, count)."""
    index, places = torch.arange(count), torch.arange(size)[:, None]
    starts, ends = index * size // count, ((index + 1) * size + count - 1) // count
    inside = (places >= starts) & (places < ends)
    shares: Tensor = inside / (ends - starts)
    return shares

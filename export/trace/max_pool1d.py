"""Max pooling over one axis, written with two axes so that torch.export keeps its length dynamic.

The trace of `max_pool1d` in PyTorch 2.13 fixes the length of its input to the example's.

    before   (B, C, T) -> max_pool1d(k) -> (B, C, T // k)
    after    (B, C, T) -> unsqueeze(-2) -> (B, C, 1, T) -> max_pool2d(1, k) -> (B, C, 1, T // k)
                       -> squeeze(-2)   -> (B, C, T // k)
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F


def max_pool1d_by_max_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Computes `max_pool1d`, with its arguments, by `max_pool2d` over a single row."""
    stride_size = kernel_size if stride in (None, [], ()) else stride
    pool: Any = F.max_pool2d
    pooled = pool(
        input.unsqueeze(-2),
        (1, _single_int(kernel_size)),
        (1, _single_int(stride_size)),
        (0, _single_int(padding)),
        (1, _single_int(dilation)),
        ceil_mode=ceil_mode,
        return_indices=return_indices,
    )
    if return_indices:
        return tuple(part.squeeze(-2) for part in pooled)
    return pooled.squeeze(-2)


def _single_int(value: Any) -> int:
    return int(value[0]) if isinstance(value, (tuple, list)) else int(value)

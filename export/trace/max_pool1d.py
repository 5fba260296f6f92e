"""One-dimensional max pooling in a form that torch.export traces for any length."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F


def max_pool_in_two_dimensions(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Does `max_pool1d` by `max_pool2d` over one row: PyTorch 2.13 fixes the former's length."""
    step = kernel_size if stride in (None, [], ()) else stride
    pool: Any = F.max_pool2d
    pooled = pool(
        input.unsqueeze(-2),
        (1, _only(kernel_size)),
        (1, _only(step)),
        (0, _only(padding)),
        (1, _only(dilation)),
        ceil_mode=ceil_mode,
        return_indices=return_indices,
    )
    if return_indices:
        return tuple(part.squeeze(-2) for part in pooled)
    return pooled.squeeze(-2)


def _only(value: Any) -> int:
    return int(value[0]) if isinstance(value, (tuple, list)) else int(value)

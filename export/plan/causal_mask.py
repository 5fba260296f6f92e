"""Recognizes constant tables that are causal masks, and computes their rows from positions.

A table qualifies if all its values on and below the diagonal are equal, and all above it are:

    bool              additive                   pattern
    [[T, F, F],       [[0, -inf, -inf],          allowed  T or 0
     [T, T, F],        [0,    0, -inf],          blocked  F or -inf
     [T, T, T]]        [0,    0,    0]]

A step at position p then needs no table: its row (1, capacity) is `arange(capacity) <= p`, with the
two values in place of true and false.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKED_BELOW = -5e3
"""An additive mask value below this one hides a key: the usual -1e4 with a bias on top, too."""


def future_mask(count: int, length: int) -> Tensor:
    """Returns which keys are later tokens for each row, (count, count) bool.

    Args:
        count: number of rows and of keys; the last `length` of them are tokens and the first ones
            are the prefix, whose rows may see the whole prefix.
        length: number of tokens.
    """
    future = torch.ones(count, count, dtype=torch.bool).triu(1)
    future[: count - length, : count - length] = False
    return future


@dataclass(frozen=True)
class CausalPattern:
    """The two values of a square causal table.

    Attributes:
        allowed: the value on and below the diagonal; a bool table has True or False here.
        blocked: the value above the diagonal.
        dtype: dtype of the table.
    """

    allowed: float
    blocked: float
    dtype: torch.dtype

    @property
    def is_mask(self) -> bool:
        """Whether the table is a bool attention mask, true where a key may be seen."""
        return self.dtype is torch.bool and self.allowed == 1 and self.blocked == 0

    @property
    def masks_attention(self) -> bool:
        """Whether a bool attention mask can replace the table in a fused attention."""
        additive = self.dtype.is_floating_point and self.allowed == 0
        return self.is_mask or (additive and self.blocked <= BLOCKED_BELOW)

    def of(self, mask: Tensor) -> Tensor:
        """Returns `allowed` where `mask`, bool of any shape, is true and `blocked` elsewhere."""
        if self.dtype is torch.bool:  # ONNX Runtime's Where takes no bool values
            return mask if self.allowed else ~mask
        allowed, blocked = (torch.tensor(v, dtype=self.dtype) for v in (self.allowed, self.blocked))
        return torch.where(mask, allowed, blocked)


def causal_pattern(table: Tensor) -> CausalPattern | None:
    """Returns the pattern of a causal table (1, ..., length, length); None if it is not causal."""
    length = table.shape[-1]
    if table.shape[-2] != length or table.numel() != length**2:
        return None
    square = table.reshape(length, length)
    past = torch.ones(length, length, dtype=torch.bool).tril()
    allowed, blocked = square[past], square[~past]
    two_values = bool((allowed == allowed[0]).all()) and bool((blocked == blocked[0]).all())
    if two_values and allowed[0] != blocked[0]:
        return CausalPattern(allowed[0].item(), blocked[0].item(), table.dtype)
    return None

"""Constant tables that only say which keys are in the past."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKED_BELOW = -1e4
"""An additive mask value under this one lets nothing through."""


def later_places(count: int, length: int) -> Tensor:
    """Returns where a row would see later tokens, (count, count) bool.

    Of `count` rows and keys the last `length` are tokens; what stands before them may see itself.
    """
    later = torch.ones(count, count, dtype=torch.bool).triu(1)
    later[: count - length, : count - length] = False
    return later


@dataclass(frozen=True)
class CausalPattern:
    """A square table that is `allowed` on and below its diagonal and `blocked` above."""

    allowed: float
    blocked: float
    dtype: torch.dtype

    @property
    def is_mask(self) -> bool:
        """Whether it is boolean, true where a key may be seen."""
        return self.dtype is torch.bool and self.allowed == 1 and self.blocked == 0

    @property
    def masks_attention(self) -> bool:
        """Whether it can be replaced by a boolean attention mask."""
        additive = self.dtype.is_floating_point and self.allowed == 0
        return self.is_mask or (additive and self.blocked <= BLOCKED_BELOW)

    def of(self, mask: Tensor) -> Tensor:
        """Returns the values of the table where `mask` tells which keys may be seen."""
        if self.dtype is torch.bool:  # ONNX Runtime chooses between numbers only
            return mask if self.allowed else ~mask
        allowed, blocked = (torch.tensor(v, dtype=self.dtype) for v in (self.allowed, self.blocked))
        return torch.where(mask, allowed, blocked)


def causal_pattern(table: Tensor) -> CausalPattern | None:
    """Recognises a (1, ..., length, length) table that only says which keys are in the past."""
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

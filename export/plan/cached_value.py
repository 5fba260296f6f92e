"""What is kept between calls: the form in which a value is kept, and who reads it.

Keys and values, of earlier tokens and of the memory alike, are kept as (batch, heads, length,
width), whatever the model's own code makes of them: that can be written in place everywhere, and
no reader has to transpose it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx


@dataclass(frozen=True)
class CacheLayout:
    """How the axes of a value become (batch, heads, length, width).

    Attributes:
        batch: axis of the batch.
        heads: the axes that become heads.
        length: axis along the tokens, or along the memory.
        width: the axes that become the width.
        folded: how many heads are folded into the batch axis.
    """

    batch: int
    heads: tuple[int, ...]
    length: int
    width: tuple[int, ...]
    folded: int = 1

    @property
    def order(self) -> tuple[int, ...]:
        """The value's axes in the order in which they are kept."""
        return (self.batch, *self.heads, self.length, *self.width)

    def to_cache(self, value: Tensor) -> Tensor:
        """Returns a value as (batch, heads, length, width)."""
        if self.order != tuple(sorted(self.order)):
            value = value.permute(self.order)
        heads = len(self.heads)
        if self.folded > 1:
            value, heads = torch.unflatten(value, 0, (-1, self.folded)), heads + 1
        if heads != 1:
            value = value.unsqueeze(1) if heads == 0 else value.flatten(1, heads)
        if len(self.width) != 1:
            value = value.flatten(3) if self.width else value.unsqueeze(-1)
        return value

    def from_cache(self, cached: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Returns the value back; `sizes` are its own, the batch's is not looked at."""
        ordered = [-1 if axis == self.batch else sizes[axis] for axis in self.order]
        value = cached.reshape(ordered)
        if self.order == tuple(sorted(self.order)):
            return value
        return value.permute([self.order.index(axis) for axis in range(len(self.order))])


@dataclass(frozen=True)
class CachedValue:
    """A value that is kept between calls.

    Attributes:
        source: the node that computes it.
        form: how it is kept; None: as it is.
        kind: what it serves as: `key`, `value`, `mask` or `state`.
    """

    source: fx.Node
    form: CacheLayout | None
    kind: str = field(compare=False)


@dataclass(frozen=True)
class Access:
    """How a consumer gets at an operand that is kept.

    Attributes:
        kept: what is kept for it.
        groups: how many of the consumer's heads share a kept one.
        path: the movements from the kept value to the operand, for what is no key and no value.
    """

    cached: CachedValue
    groups: int = 1
    path: tuple[fx.Node, ...] = ()

"""Cached values: the layout of a cache, the node that it holds, and how consumers read it.

Keys and values, of earlier tokens and of the memory, are cached as (batch, heads, length, width),
whatever axes the model's code uses: every backend can write that layout in place, and no reader has
to transpose it. Examples of `CacheLayout.to_cache`:

    value                        layout                                    cache
    (B, T, H, W)                 batch 0, heads (2,), length 1, width (3,)  (B, H, T, W)
    (T, B, W)                    batch 1, heads (),   length 0, width (2,)  (B, 1, T, W)
    (B * H, W, T)                batch 0, heads (),   length 2, width (1,)  (B, H, T, W)
                                 with fold_factor H
    (B, T), a padding mask       batch 0, heads (),   length 1, width ()    (B, 1, T, 1)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

_WIDER_DTYPES = {
    torch.bool: torch.float32,
    torch.uint8: torch.float32,
    torch.int8: torch.float32,
    torch.int16: torch.float32,
    torch.int32: torch.int64,
}
"""The dtypes of the caches for values that TensorRT or ONNX Runtime cannot cache as they are."""


@dataclass(frozen=True)
class CacheLayout:
    """The mapping of a value's axes to (batch, heads, length, width).

    Attributes:
        batch: axis of the batch.
        heads: the axes that are flattened into the heads.
        length: axis of the tokens, or of the memory's rows.
        width: the axes that are flattened into the width.
        fold_factor: number of heads that are folded into the batch axis.
    """

    batch: int
    heads: tuple[int, ...]
    length: int
    width: tuple[int, ...]
    fold_factor: int = 1

    @property
    def order(self) -> tuple[int, ...]:
        """The value's axes in the order of the cache."""
        return (self.batch, *self.heads, self.length, *self.width)

    def to_cache(self, value: Tensor) -> Tensor:
        """Returns a value as (batch, heads, length, width)."""
        if self.order != tuple(sorted(self.order)):
            value = value.permute(self.order)
        heads = len(self.heads)
        if self.fold_factor > 1:
            value, heads = torch.unflatten(value, 0, (-1, self.fold_factor)), heads + 1
        if heads != 1:
            value = value.unsqueeze(1) if heads == 0 else value.flatten(1, heads)
        if len(self.width) != 1:
            value = value.flatten(3) if self.width else value.unsqueeze(-1)
        return value

    def from_cache(self, cached: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Returns the value that a cache holds, in its own shape.

        Args:
            cached: (batch, heads, length, width).
            sizes: shape of the value; the size of its batch axis is ignored.
        """
        ordered = [-1 if axis == self.batch else sizes[axis] for axis in self.order]
        value = cached.reshape(ordered)
        if self.order == tuple(sorted(self.order)):
            return value
        return value.permute([self.order.index(axis) for axis in range(len(self.order))])


@dataclass(frozen=True)
class BatchFirst:
    """The mapping of a value to its own shape with the batch as its first axis.

    Sequences are chosen, repeated and dropped along the first axis of every memory tensor.

        value              layout                     memory tensor
        (1, B, W)          batch 1                    (B, 1, W)
        (B * H, 1, S)      batch 0, which is folded   (B, H, 1, S)

    Attributes:
        batch: axis of the batch.
        elements: number of elements of every sequence that are folded into that axis, side by side;
            None if it holds the sequences alone.
    """

    batch: int
    elements: int | torch.SymInt | None = field(default=None, compare=False)

    def to_memory(self, value: Tensor, batch: int) -> Tensor:
        """Returns a value of some sequences with the batch first."""
        if self.elements is not None:
            value = torch.unflatten(value, self.batch, (batch, -1))
        return value.movedim(self.batch, 0)

    def from_memory(self, memory: Tensor) -> Tensor:
        """Returns the value in its own shape."""
        value = memory.movedim(0, self.batch)
        return value if self.elements is None else value.flatten(self.batch, self.batch + 1)


@dataclass(frozen=True)
class CachedValue:
    """A value that is kept between calls of the decoder graphs: of earlier tokens or of the memory.

    Attributes:
        source: the node that computes the value.
        layout: the layout of the cache; None keeps the value in its own shape.
        kind: the use of the value: `key`, `value`, `mask` or `state`.
        batch_first: how a value in its own shape gets the batch as its first axis; None if it is
            there, or if the value has no batch.
    """

    source: fx.Node
    layout: CacheLayout | None
    kind: str = field(compare=False)
    batch_first: BatchFirst | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the cache."""
        own: torch.dtype = self.source.meta["val"].dtype
        return _WIDER_DTYPES.get(own, own)

    def to_memory(self, value: Tensor, batch: int) -> Tensor:
        """Returns the memory tensor that holds a value of some sequences."""
        if self.layout is not None:
            return self.layout.to_cache(value)
        return value if self.batch_first is None else self.batch_first.to_memory(value, batch)

    def to_cache_dtype(self, rows: Tensor) -> Tensor:
        """Returns rows of the value in the dtype of the cache."""
        return rows if rows.dtype is self.dtype else rows.to(self.dtype)

    def from_cache_dtype(self, cached: Tensor) -> Tensor:
        """Returns what the cache holds in the dtype of the value."""
        own: torch.dtype = self.source.meta["val"].dtype
        if own is torch.bool:
            return cached > 0
        return cached if cached.dtype is own else cached.to(own)


@dataclass(frozen=True)
class CacheAccess:
    """How a consumer reads a cached operand.

    Attributes:
        cached: the value that is cached for the operand.
        groups: number of the consumer's heads that share one cached head.
        path: nodes that move the cached value to the operand, in order; empty for keys and values.
    """

    cached: CachedValue
    groups: int = 1
    path: tuple[fx.Node, ...] = ()

"""Computes the nodes of a decoder plan for new tokens, and updates the caches.

A node that depends on tokens is computed for several rows per sequence, or for a single one. The
single row has no row axis. Example: B sequences, R new tokens, capacity T, 4 heads of width 16.

    node of the trace at length L       several rows, prefill   single row, step
    x  = embedding        (B, L, 64)    (B, R, 64)              (B, 64)
    k  = heads of x       (B, 4, L, 16) (B, 4, R, 16)           (B, 4, 16)
    cache of k                          (B, 4, T, 16)           (B, 4, T, 16)
    s  = scores q @ k.mT  (B, 4, L, L)  (B, 4, R, T)            (B, 4, T)
    causal mask           (1, 1, L, L)  (B, 1, R, T)            (B, 1, T)

In a step graph all nodes are computed for a single row. In a prefill graph the nodes that the
caches depend on are computed for several rows, all others for each sequence's last real row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from hybrid_deploy.export.plan.axis_alignment import (
    Alignment,
    align_rows,
    repeat_elements,
    squeeze_axis,
)
from hybrid_deploy.export.plan.cache_ops import cache_write
from hybrid_deploy.export.plan.cached_value import CachedValue
from hybrid_deploy.export.plan.data_movement import replay
from hybrid_deploy.export.plan.plan import BindingTime, DecodePlan
from hybrid_deploy.export.trace.capture import as_expr, evaluate, example_size
from hybrid_deploy.export.trace.refusal import refuse


class ConstantLookup(Protocol):
    """A mapping from constant nodes to their tensors."""

    def __getitem__(self, node: fx.Node, /) -> Tensor:
        """Returns the value of a constant node."""
        ...


class RowExecutor:
    """The values of a plan's nodes during one call of a decoder graph.

    Args:
        plan: the analysed decoder.
        tokens: int64, (batch,) for a single row, (batch, length) for several rows.
        position: (batch,) int64, position of the first token.
        last: (batch,) int64, index of the last real row; None for a single row.
        memory: the memory tensors in the plan's order; None inside the encoder graph.
        caches: the caches in the plan's order, (batch, heads, capacity, width) each.
        constants: the values of the constant nodes.
        single: the nodes that are computed for a single row.
        native: whether the ONNX opset has operators for attention and for writing into a cache.

    Attributes:
        plan: the analysed decoder.
        native: whether the ONNX opset has operators for attention and for writing into a cache.
        caches: the caches; the new rows of a cache are written when a consumer first reads it.
    """

    def __init__(
        self,
        plan: DecodePlan,
        tokens: Tensor,
        position: Tensor,
        last: Tensor | None,
        memory: Sequence[Tensor] | None,
        caches: Sequence[Tensor],
        constants: ConstantLookup,
        single: frozenset[fx.Node],
        *,
        native: bool = True,
    ) -> None:
        self.plan = plan
        self.native = native
        self.caches = list(caches)
        self._position = position
        self._last = last
        self._constants = constants
        self._single = single
        self._values: dict[fx.Node, Any] = {plan.capture.tokens: tokens}
        self._memory = {} if memory is None else dict(zip(plan.memory, memory, strict=True))
        self._cache_indices = {cache: index for index, cache in enumerate(plan.caches)}
        self._written: set[CachedValue] = set()
        self._computed: dict[object, Tensor] = {}
        self._sizes = self._measure(tokens)

    def store(self, node: fx.Node, value: object) -> None:
        """Records the value of a node that depends on tokens."""
        self._values[node] = value

    def is_single(self, node: fx.Node) -> bool:
        """Returns whether a node is computed for a single row."""
        return node in self._single

    def token_value(self, node: fx.Node, *, single: bool) -> Any:
        """Returns the value of a node that depends on tokens, for a single row or for several.

        If the node is computed for several rows, a single row is each sequence's last real one.
        """
        value = self._values[node]
        if single == self.is_single(node) or self.plan.layouts[node].rows is None:
            return value
        assert single, "several rows cannot be computed from a single one"
        if isinstance(value, (tuple, list)):
            return [self._last_row(node, part) for part in value]
        if node not in self._computed:
            self._computed[node] = self._last_row(node, value)
        return self._computed[node]

    def fixed_value(self, consumer: fx.Node, operand: fx.Node) -> Any:
        """Returns the value of an operand that does not depend on tokens, in its own shape."""
        time = self.plan.binding_times[operand]
        if time is BindingTime.SIZE:
            return self.size(as_expr(operand.meta["val"]))
        if time is BindingTime.MEMORY:
            cached = self.plan.accesses[consumer, operand].cached
            value = self._memory[cached]
            return cached.batch_first.from_memory(value) if cached.batch_first else value
        return self._constants[operand]

    def cached_heads(self, consumer: fx.Node, operand: fx.Node) -> tuple[Tensor, int]:
        """Returns the keys or values of an attention, including the new rows.

        Returns:
            The tensor (batch, heads, length, width), and the number of the consumer's heads that
            share one of its heads.
        """
        access = self.plan.accesses[consumer, operand]
        memory = self._memory.get(access.cached)
        return (self._read_rows(access.cached) if memory is None else memory), access.groups

    def axis(self, node: fx.Node, axis: int, *, single: bool) -> int:
        """Returns the index of a node's axis in a value for a single row, or for several rows."""
        layout = self.plan.layouts[node]
        axis %= self.plan.rank(node)
        if not single or layout.rows is None or layout.merged:
            return axis
        assert axis != layout.rows, "the row axis is dropped"
        return axis - 1 if axis > layout.rows else axis

    def shape(self, node: fx.Node) -> list[Any]:
        """Returns the shape in which a node is computed, for a reshape: one unknown size is -1."""
        layout, sizes = self.plan.layouts[node], []
        for axis, size in enumerate(self.plan.shape(node)):
            if axis == layout.keys:
                sizes.append(self.key_count(self.plan.prefix_length(node, axis)))
            elif axis != layout.rows:
                sizes.append(self.size(as_expr(size)))
            elif layout.merged:
                prefix_length = self.plan.prefix_length(node, axis)
                values_per_token = as_expr(size) / (self.plan.capture.length + prefix_length)
                rows = 1 if self.is_single(node) else self.row_count()
                sizes.append(self.size(values_per_token) * rows)
            elif not self.is_single(node):
                sizes.append(self.row_count())
        unknown = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
        if len(unknown) == 1:
            sizes[unknown[0]] = -1
        return sizes

    def full_shape(self, node: fx.Node) -> list[Any]:
        """Returns the shape of a node for all keys of this call."""
        return [self.size(as_expr(size)) for size in self.plan.shape(node)]

    def size(self, expr: sympy.Expr) -> Any:
        """Returns the size of a dimension in this call."""
        return evaluate(expr, self._sizes)

    def alignment(self, node: fx.Node) -> Alignment:
        """Returns the alignment of a node's own result."""
        rank, rows = self.plan.rank(node), self.plan.layouts[node].rows
        batch = self.plan.batch_axis(node)
        fold_factor = 1 if batch == rows else self.plan.fold_factor(node)
        return Alignment(
            rank=rank,
            rows=None if rows is None else rows - rank,
            batch=None if batch is None else batch - rank,
            fold_factor=fold_factor,
        )

    def aligned_value(self, consumer: fx.Node, operand: Any, alignment: Alignment) -> Any:
        """Returns an operand's value in a shape that broadcasts into the consumer's result.

        Args:
            consumer: the node that reads the operand.
            operand: a node, or a plain argument, which is returned as it is.
            alignment: the axes of the consumer's result.
        """
        if not isinstance(operand, fx.Node):
            return operand
        plan, time = self.plan, self.plan.binding_times[operand]
        single = self.is_single(consumer)
        if time is BindingTime.TOKEN and (consumer, operand) not in plan.accesses:
            value = self.token_value(operand, single=single)
            if plan.layouts[operand].rows is not None:
                return value
        elif time is BindingTime.TOKEN:
            value = self.value_along_keys(consumer, operand)
        else:
            if self._row_axis(operand, alignment) is not None:
                return self._rows_of_table(consumer, operand, alignment)
            value = self.fixed_value(consumer, operand)
        return squeeze_axis(value, alignment.rows) if single else value

    def value_along_keys(self, consumer: fx.Node, operand: fx.Node) -> Tensor:
        """Returns the value of an operand for all tokens so far, in the operand's own shape."""
        access = self.plan.accesses[consumer, operand]
        key = ("keyed", access)
        if key not in self._computed:
            cached = access.cached
            assert cached.layout is not None
            sizes = tuple(example_size(size) for size in self.plan.shape(cached.source))
            value = cached.layout.from_cache(self._read_rows(cached), sizes)
            value = cached.from_cache_dtype(value)
            self._computed[key] = replay(access.path, value, self.full_shape)
        return self._computed[key]

    def join_prefix(self, node: fx.Node, parts: Sequence[Any]) -> Any:
        """Returns the new rows of a node that concatenates memory before the tokens."""
        return self.token_value(parts[-1], single=self.is_single(node))

    def row_count(self) -> Any:
        """Returns the number of rows that are computed for each sequence."""
        return self._values[self.plan.capture.tokens].shape[1]

    def key_count(self, prefix_length: sympy.Expr) -> Any:
        """Returns the number of keys along an axis with `prefix_length` rows before the tokens."""
        return self.plan.capture.length + self.size(prefix_length)

    def positions(self, prefix_length: sympy.Expr, *, single: bool) -> Tensor:
        """Returns the indices of the rows along an axis, `prefix_length` of which precede token 0.

        Along an axis that begins after token 0, the indices of the tokens before it are 0.

        Returns:
            (batch,) int64 for a single row, (batch, length) for several.
        """
        first = self._position + self.size(prefix_length) if prefix_length != 0 else self._position
        if not single:
            positions = first[:, None] + torch.arange(self.row_count())
        else:
            positions = first if self._last is None else first + self._last
        return positions.clamp(min=0) if prefix_length.is_negative else positions

    def causal_mask(self, prefix_length: sympy.Expr, *, single: bool) -> Tensor:
        """Returns which keys each row may see, bool: (batch, keys), or (batch, length, keys)."""
        key = ("causal", prefix_length, single)
        if key not in self._computed:
            positions = self.positions(prefix_length, single=single).unsqueeze(-1)
            self._computed[key] = torch.arange(self.key_count(prefix_length)) <= positions
        return self._computed[key]

    def attention_mask(
        self, consumer: fx.Node, keys: fx.Node, operand: fx.Node | None, alignment: Alignment
    ) -> Any:
        """Returns the mask of a fused attention, broadcastable to (batch, heads, rows, keys).

        Args:
            consumer: the attention.
            keys: its keys.
            operand: its mask; None for the causal mask.
            alignment: the axes of the mask for a full sequence.
        """
        single = self.is_single(consumer)
        pattern = None if operand is None else self.plan.causal_patterns.get(operand)
        if operand is None or (pattern is not None and pattern.masks_attention):
            prefix_length = self.plan.prefix_length(keys, self.plan.rank(keys) - 2)
            mask = self.causal_mask(prefix_length, single=single)  # (batch, [length,] keys)
            key = ("attention", prefix_length, single, alignment.rank, alignment.fold_factor)
            if key not in self._computed:
                heads = (1,) * (alignment.rank - (2 if single else 3))
                mask = mask.reshape(mask.shape[0], *heads, *mask.shape[1:])
                self._computed[key] = repeat_elements(mask, alignment.fold_factor, 0)
            return self._computed[key]
        mask = self.aligned_value(consumer, operand, alignment)
        has_rows = self._row_axis(operand, alignment) is not None
        return mask.unsqueeze(-2) if single and (has_rows or mask.dim() < alignment.rank) else mask

    def _cached(self, cache: CachedValue) -> Tensor:
        """Returns a cache that contains the new rows; the first call writes them."""
        index = self._cache_indices[cache]
        if cache not in self._written:
            assert cache.layout is not None
            rows = self._values[cache.source]
            if self.is_single(cache.source):
                rows = rows.unsqueeze(cache.layout.length)
            rows = cache.to_cache_dtype(cache.layout.to_cache(rows))
            prefix_length = self.plan.prefix_length(cache.source, cache.layout.length)
            self.caches[index] = self._write(self.caches[index], rows, prefix_length)
            self._written.add(cache)
        return self.caches[index]

    def _read_rows(self, cache: CachedValue) -> Tensor:
        """Returns a cache that contains the new rows, from its value's first position on."""
        assert cache.layout is not None
        first = self.plan.first_position(cache.source, cache.layout.length)
        rows = self._cached(cache)
        return rows.narrow(2, first, self.plan.capture.length - first) if first > 0 else rows

    def _write(self, cache: Tensor, rows: Tensor, prefix_length: sympy.Expr) -> Tensor:
        if prefix_length.is_negative:
            prefix_length = sympy.Integer(0)
        first = self._position + self.size(prefix_length) if prefix_length != 0 else self._position
        if self.native:
            written: Tensor = cache_write(cache, rows, first)
            return written
        key = ("places", prefix_length, rows.shape[1], rows.shape[3])
        if key not in self._computed:
            index = first[:, None] + torch.arange(rows.shape[2])  # (batch, rows)
            self._computed[key] = index[:, None, :, None].expand(rows.shape)
        return cache.scatter(2, self._computed[key], rows)

    def _with_keys(self, operand: fx.Node, table: Tensor) -> Tensor:
        """Returns a table with the keys of this call; the decoder graphs read all of them."""
        return table

    def _measure(self, tokens: Tensor) -> dict[sympy.Symbol, Any]:
        """Returns the size of each symbol, read from the shapes of the memory and the caches."""
        sizes: dict[sympy.Symbol, Any] = {self.plan.capture.batch: tokens.shape[0]}
        caches = zip(self.plan.caches, self.caches, strict=False)  # the encoder graph has none
        for cached, value in (*self._memory.items(), *caches):
            for expected, size in zip(self.plan.cached_shape(cached), value.shape, strict=True):
                expr = as_expr(expected)
                symbol = expr if expr.is_Symbol else expr - self.plan.capture.length
                if symbol.is_Symbol and symbol not in sizes:
                    sizes[symbol] = size - int(expr - symbol)
        return sizes

    def _last_row(self, node: fx.Node, value: Tensor) -> Tensor:
        """Returns the last real row of each sequence, without a row axis."""
        layout, batch = self.plan.layouts[node], self.plan.batch_axis(node)
        assert layout.rows is not None and batch is not None and self._last is not None
        if layout.merged:
            raise refuse(node, "the token axis is folded into the batch where one row is picked")
        sizes: list[Any] = [1] * value.dim()
        sizes[batch] = -1
        row_sizes = list(value.shape)
        row_sizes[layout.rows] = 1
        last = repeat_elements(self._last, self.plan.fold_factor(node), 0)
        index = last.reshape(sizes).expand(row_sizes)
        return value.gather(layout.rows, index).squeeze(layout.rows)

    def _row_axis(self, operand: fx.Node, alignment: Alignment) -> int | None:
        """Returns the axis of a table, from the end, that runs along the result's rows, if any."""
        if not self.plan.is_position_table(operand) or alignment.rows is None:
            return None
        rank = self.plan.rank(operand)
        axes = (axis - rank for axis in self.plan.token_axes(operand))
        return next((axis for axis in axes if axis == alignment.rows), None)

    def _rows_of_table(self, consumer: fx.Node, operand: fx.Node, alignment: Alignment) -> Tensor:
        """Returns a table's rows at the positions of the new tokens, aligned with the result."""
        single = self.is_single(consumer)
        key = ("rows", operand, single, alignment)
        if key in self._computed:
            return self._computed[key]
        if alignment.batch is None or alignment.rows is None or alignment.batch == alignment.rows:
            raise refuse(consumer, "a value per position meets a value whose batch axis is unclear")
        pattern = self.plan.causal_patterns.get(operand)
        prefix_length = self.plan.prefix_length(operand, alignment.rows + self.plan.rank(operand))
        if pattern is not None:
            mask = self.causal_mask(prefix_length, single=single)
            picked = pattern.of(mask)
            row_shape: tuple[int, ...] = (*(1,) * (alignment.rank - 2), mask.shape[-1])
        else:
            table = self._with_keys(operand, self.fixed_value(consumer, operand))
            table = table.reshape((1,) * (alignment.rank - table.dim()) + tuple(table.shape))
            rows = alignment.rows + alignment.rank
            if rows != 0:
                table = table.permute(rows, *(a for a in range(alignment.rank) if a != rows))
            row_shape = tuple(table.shape[1:])
            picked = F.embedding(self.positions(prefix_length, single=single), table.flatten(1))
        value = align_rows(picked, row_shape, alignment, single=single)
        self._computed[key] = value
        return value

"""One run of a decoder plan over new tokens: values, layouts, caches.

A value that depends on tokens exists in one of two forms:

several rows   the row axis is there and holds the new tokens
single row     the row axis is dropped: (batch, length, width) becomes (batch, width)

A step graph is all single row. A prefill graph keeps several rows as far as the caches need
them and goes on with the last real row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from hybrid_deploy.export.plan.axis_alignment import Alignment, place, repeat, without_axis
from hybrid_deploy.export.plan.cache_ops import cache_write
from hybrid_deploy.export.plan.cached_value import CachedValue
from hybrid_deploy.export.plan.data_movement import replay
from hybrid_deploy.export.plan.plan import BindingTime, DecodePlan
from hybrid_deploy.export.trace.capture import as_expr, evaluate, hint
from hybrid_deploy.export.trace.refusal import refuse


class Lookup(Protocol):
    """Returns the tensor of a constant node."""

    def __getitem__(self, node: fx.Node, /) -> Tensor:
        """Returns the constant."""
        ...


class RowExecutor:
    """The values of one run.

    Args:
        plan: the analysed decoder.
        tokens: (batch,) for a single row, (batch, length) for several; int64.
        position: (batch,) int64, position of the (first) token.
        last: (batch,) int64, index of the last real row; None for a single row.
        memory: the encoder graph's outputs; None inside of the encoder graph.
        caches: (batch, heads, capacity, width) each, in the plan's order.
        constants: the folded constants.
        single: nodes that are computed for a single row.
        native: the target has operators for attention and for writing into a cache.
    """

    def __init__(
        self,
        plan: DecodePlan,
        tokens: Tensor,
        position: Tensor,
        last: Tensor | None,
        memory: Sequence[Tensor] | None,
        caches: Sequence[Tensor],
        constants: Lookup,
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
        self._places = {cache: index for index, cache in enumerate(plan.caches)}
        self._written: set[CachedValue] = set()
        self._made: dict[object, Tensor] = {}
        self._sizes = self._measure(tokens)

    def store(self, node: fx.Node, value: object) -> None:
        """Keeps the value of a node."""
        self._values[node] = value

    def is_single(self, node: fx.Node) -> bool:
        """Returns whether a node is computed for a single row."""
        return node in self._single

    def raw(self, node: fx.Node, *, single: bool) -> Any:
        """Returns the value of an operand that depends on tokens, in the wanted form."""
        value = self._values[node]
        if single == self.is_single(node) or self.plan.layouts[node].rows is None:
            return value
        assert single, "several rows cannot be had from one"
        if isinstance(value, (tuple, list)):
            return [self._last_row(node, part) for part in value]
        if node not in self._made:
            self._made[node] = self._last_row(node, value)
        return self._made[node]

    def fixed(self, consumer: fx.Node, operand: fx.Node) -> Any:
        """Returns the value of an operand that does not depend on tokens, as it is."""
        time = self.plan.times[operand]
        if time is BindingTime.SIZE:
            return self.size(as_expr(operand.meta["val"]))
        if time is BindingTime.MEMORY:
            return self._memory[self.plan.accesses[consumer, operand].cached]
        return self._constants[operand]

    def heads(self, consumer: fx.Node, operand: fx.Node) -> tuple[Tensor, int]:
        """Returns an attention's keys or values, (batch, heads, length, width), new rows included.

        Returns:
            The tensor, and how many heads of the consumer share one of its heads.
        """
        access = self.plan.accesses[consumer, operand]
        known = self._memory.get(access.cached)
        return (self._cached(access.cached) if known is None else known), access.groups

    def axis(self, node: fx.Node, axis: int, *, single: bool) -> int:
        """Returns the index of one of a node's axes in the form with or without a row axis."""
        layout = self.plan.layouts[node]
        axis %= self.plan.rank(node)
        if not single or layout.rows is None or layout.merged:
            return axis
        assert axis != layout.rows, "the row axis is dropped"
        return axis - 1 if axis > layout.rows else axis

    def shape(self, node: fx.Node) -> list[Any]:
        """Returns the shape of a node in the form that it is computed in, ready for a reshape."""
        layout, sizes = self.plan.layouts[node], []
        for axis, size in enumerate(self.plan.shape(node)):
            if axis == layout.keys:
                sizes.append(self.key_count(self.plan.prefix_length(node, axis)))
            elif axis != layout.rows:
                sizes.append(self.size(as_expr(size)))
            elif layout.merged:
                lead = self.plan.prefix_length(node, axis)
                per_row = as_expr(size) / (self.plan.capture.length + lead)
                rows = 1 if self.is_single(node) else self.row_count()
                sizes.append(self.size(per_row) * rows)
            elif not self.is_single(node):
                sizes.append(self.row_count())
        unknown = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
        if len(unknown) == 1:
            sizes[unknown[0]] = -1
        return sizes

    def size(self, expr: sympy.Expr) -> Any:
        """Computes a dimension from the sizes at hand."""
        return evaluate(expr, self._sizes)

    def alignment(self, node: fx.Node) -> Alignment:
        """Returns the alignment of a node's own result."""
        rank, rows = self.plan.rank(node), self.plan.layouts[node].rows
        batch = self.plan.batch_axis(node)
        folded = 1 if batch == rows else self.plan.folded(node)
        return Alignment(
            rank=rank,
            rows=None if rows is None else rows - rank,
            batch=None if batch is None else batch - rank,
            folded=folded,
        )

    def aligned(self, consumer: fx.Node, operand: Any, into: Alignment) -> Any:
        """Returns an operand in the form that broadcasts into the consumer's result."""
        if not isinstance(operand, fx.Node):
            return operand
        plan, time = self.plan, self.plan.times[operand]
        single = self.is_single(consumer)
        if time is BindingTime.TOKEN and (consumer, operand) not in plan.accesses:
            value = self.raw(operand, single=single)
            if plan.layouts[operand].rows is not None:
                return value
        elif time is BindingTime.TOKEN:
            value = self.keyed(consumer, operand)
        else:
            if self._row_axis(operand, into) is not None:
                return self._rows_of_table(consumer, operand, into)
            value = self.fixed(consumer, operand)
        return without_axis(value, into.rows) if single else value

    def keyed(self, consumer: fx.Node, operand: fx.Node) -> Tensor:
        """Returns an operand for all tokens so far, in its own shape."""
        access = self.plan.accesses[consumer, operand]
        key = ("keyed", access)
        if key not in self._made:
            kept = access.cached
            assert kept.form is not None
            sizes = tuple(hint(size) for size in self.plan.shape(kept.source))
            value = kept.form.from_cache(self._cached(kept), sizes)
            if kept.source.meta["val"].dtype is torch.bool:
                value = value > 0
            self._made[key] = replay(access.path, value, self._full_shape)
        return self._made[key]

    def join_prefix(self, node: fx.Node, parts: Sequence[Any]) -> Any:
        """Returns the rows of a value in which memory stands before the tokens."""
        return self.raw(parts[-1], single=self.is_single(node))

    def row_count(self) -> Any:
        """Returns how many rows are computed for each sequence."""
        return self._values[self.plan.capture.tokens].shape[1]

    def key_count(self, prefix_length: sympy.Expr) -> Any:
        """Returns how many keys there are where `lead` values stand before the tokens."""
        return self.plan.capture.length + self.size(prefix_length)

    def positions(self, prefix_length: sympy.Expr, *, single: bool) -> Tensor:
        """Returns where the rows are, counting what stands before the tokens.

        Returns:
            (batch,) int64 for a single row, (batch, length) for several.
        """
        first = self._position + self.size(prefix_length) if prefix_length != 0 else self._position
        if not single:
            return first[:, None] + torch.arange(self.row_count())
        return first if self._last is None else first + self._last

    def causal_mask(self, prefix_length: sympy.Expr, *, single: bool) -> Tensor:
        """Returns which keys each row may see: (batch, keys), or (batch, length, keys)."""
        key = ("causal", prefix_length, single)
        if key not in self._made:
            positions = self.positions(prefix_length, single=single).unsqueeze(-1)
            self._made[key] = torch.arange(self.key_count(prefix_length)) <= positions
        return self._made[key]

    def attention_mask(
        self, consumer: fx.Node, keys: fx.Node, operand: fx.Node | None, into: Alignment
    ) -> Any:
        """Returns the mask of a fused attention, broadcastable to (batch, heads, rows, keys).

        `operand` None stands for the causal mask.
        """
        single = self.is_single(consumer)
        pattern = None if operand is None else self.plan.causal.get(operand)
        if operand is None or (pattern is not None and pattern.masks_attention):
            lead = self.plan.prefix_length(keys, self.plan.rank(keys) - 2)
            mask = self.causal_mask(lead, single=single)  # (batch, [length,] keys)
            key = ("attention", lead, single, into.rank, into.folded)
            if key not in self._made:
                heads = (1,) * (into.rank - (2 if single else 3))
                mask = mask.reshape(mask.shape[0], *heads, *mask.shape[1:])
                self._made[key] = repeat(mask, into.folded, 0)
            return self._made[key]
        mask = self.aligned(consumer, operand, into)
        has_rows = self._row_axis(operand, into) is not None
        return mask.unsqueeze(-2) if single and (has_rows or mask.dim() < into.rank) else mask

    def _cached(self, cache: CachedValue) -> Tensor:
        """Returns a cache, after writing the new rows."""
        index = self._places[cache]
        if cache not in self._written:
            assert cache.form is not None
            rows = self._values[cache.source]
            if self.is_single(cache.source):
                rows = rows.unsqueeze(cache.form.length)
            rows = with_cache_dtype(cache, cache.form.to_cache(rows))
            lead = self.plan.prefix_length(cache.source, cache.form.length)
            self.caches[index] = self._write(self.caches[index], rows, lead)
            self._written.add(cache)
        return self.caches[index]

    def _write(self, cache: Tensor, rows: Tensor, prefix_length: sympy.Expr) -> Tensor:
        first = self._position + self.size(prefix_length) if prefix_length != 0 else self._position
        if self.native:
            written: Tensor = cache_write(cache, rows, first)
            return written
        key = ("places", prefix_length, rows.shape[1], rows.shape[3])
        if key not in self._made:
            index = first[:, None] + torch.arange(rows.shape[2])  # (batch, rows)
            self._made[key] = index[:, None, :, None].expand(rows.shape)
        return cache.scatter(2, self._made[key], rows)

    def _with_keys(self, operand: fx.Node, table: Tensor) -> Tensor:
        """Returns a table with as many keys as there are."""
        return table

    def _full_shape(self, node: fx.Node) -> list[Any]:
        """Returns the shape of a node for all tokens so far."""
        return [self.size(as_expr(size)) for size in self.plan.shape(node)]

    def _measure(self, tokens: Tensor) -> dict[sympy.Symbol, Any]:
        sizes: dict[sympy.Symbol, Any] = {self.plan.capture.batch: tokens.shape[0]}
        for kept, value in self._memory.items():
            for expected, size in zip(self.plan.cached_shape(kept), value.shape, strict=True):
                expr = as_expr(expected)
                symbol = expr if expr.is_Symbol else expr - self.plan.capture.length
                if symbol.is_Symbol:
                    sizes.setdefault(symbol, size - int(expr - symbol))
        return sizes

    def _last_row(self, node: fx.Node, value: Tensor) -> Tensor:
        """Picks the last real row of every sequence."""
        layout, batch = self.plan.layouts[node], self.plan.batch_axis(node)
        assert layout.rows is not None and batch is not None and self._last is not None
        if layout.merged:
            raise refuse(node, "the token axis is folded into the batch where one row is picked")
        sizes: list[Any] = [1] * value.dim()
        sizes[batch] = -1
        wanted = list(value.shape)
        wanted[layout.rows] = 1
        index = self._last.reshape(sizes).expand(wanted)
        return value.gather(layout.rows, index).squeeze(layout.rows)

    def _row_axis(self, operand: fx.Node, into: Alignment) -> int | None:
        """Finds the axis of a table that runs along the rows of the result."""
        if not self.plan.is_table(operand) or into.rows is None:
            return None
        rank = self.plan.rank(operand)
        axes = (axis - rank for axis in self.plan.token_axes(operand))
        return next((axis for axis in axes if axis == into.rows), None)

    def _rows_of_table(self, consumer: fx.Node, operand: fx.Node, into: Alignment) -> Tensor:
        """Returns a table's rows at the positions of the new tokens, placed in the result."""
        single = self.is_single(consumer)
        key = ("rows", operand, single, into)
        if key in self._made:
            return self._made[key]
        if into.batch is None or into.rows is None or into.batch == into.rows:
            raise refuse(consumer, "a value per position meets a value whose batch axis is unclear")
        pattern = self.plan.causal.get(operand)
        lead = self.plan.prefix_length(operand, into.rows + self.plan.rank(operand))
        if pattern is not None:
            mask = self.causal_mask(lead, single=single)
            picked = pattern.of(mask)
            rest: tuple[int, ...] = (*(1,) * (into.rank - 2), mask.shape[-1])
        else:
            table = self._with_keys(operand, self.fixed(consumer, operand))
            table = table.reshape((1,) * (into.rank - table.dim()) + tuple(table.shape))
            rows = into.rows + into.rank
            if rows != 0:
                table = table.permute(rows, *(a for a in range(into.rank) if a != rows))
            rest = tuple(table.shape[1:])
            picked = F.embedding(self.positions(lead, single=single), table.flatten(1))
        value = place(picked, rest, into, single=single)
        self._made[key] = value
        return value


def cache_dtype(cache: CachedValue) -> torch.dtype:
    """Returns the type of a cache; truth values are kept as numbers, as TensorRT wants them."""
    dtype: torch.dtype = cache.source.meta["val"].dtype
    return torch.float32 if dtype is torch.bool else dtype


def with_cache_dtype(cache: CachedValue, rows: Tensor) -> Tensor:
    """Returns new rows in the type that their cache has."""
    dtype = cache_dtype(cache)
    return rows if rows.dtype is dtype else rows.to(dtype)

"""One run of a decoder plan over new tokens: values, layouts, caches.

A value that depends on tokens exists in one of two forms:

several rows   the row axis is there and holds the new tokens
single row     the row axis is dropped: (batch, length, width) becomes (batch, width)

A step graph is all single row. A prefill graph keeps several rows as far as the caches need
them and goes on with the last real row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from hybrid_deploy.export.capture import as_expr, evaluate, hint
from hybrid_deploy.export.lowering import cache_write
from hybrid_deploy.export.plan import BindingTime, Plan, refuse


@dataclass(frozen=True)
class Alignment:
    """Where the axes of a result are, for operands that broadcast into it.

    Attributes:
        rank: number of dimensions at full length.
        rows: axis of the tokens being decoded, from the end; None if there is none.
        batch: axis of the batch, from the end; None if there is none.
        folded: how many values are folded into the batch axis for each sequence.
    """

    rank: int
    rows: int | None
    batch: int | None
    folded: int = 1


class Lookup(Protocol):
    """Gives the tensor of a constant node."""

    def __getitem__(self, node: fx.Node, /) -> Tensor:
        """Gives the constant."""
        ...


class Frame:
    """The values of one run.

    Args:
        plan: the analysed decoder.
        tokens: (batch,) for a single row, (batch, length) for several; int64.
        position: (batch,) int64, position of the (first) token.
        last: (batch,) int64, index of the last real row; None for a single row.
        memory: the encoder graph's outputs.
        caches: (batch, heads, capacity, head_dim) each, in the plan's order.
        constants: the folded constants.
        single: nodes that are computed for a single row.
    """

    def __init__(
        self,
        plan: Plan,
        tokens: Tensor,
        position: Tensor,
        last: Tensor | None,
        memory: Sequence[Tensor],
        caches: Sequence[Tensor],
        constants: Lookup,
        single: frozenset[fx.Node],
    ) -> None:
        self.plan = plan
        self.caches = list(caches)
        self._position = position
        self._last = last
        self._constants = constants
        self._single = single
        self._values: dict[fx.Node, Any] = {plan.capture.tokens: tokens}
        self._values.update(zip(plan.memory, memory, strict=True))
        self._written: set[int] = set()
        self._made: dict[object, Tensor] = {}
        self._sizes = self._measure(tokens, memory)

    def store(self, node: fx.Node, value: object) -> None:
        """Keeps the value of a node."""
        self._values[node] = value

    def is_single(self, node: fx.Node) -> bool:
        """Tells whether a node is computed for a single row."""
        return node in self._single

    def raw(self, node: fx.Node, *, single: bool) -> Any:
        """Gives the value of an operand that depends on tokens, in the wanted form."""
        value = self._values[node]
        if single == self.is_single(node) or self.plan.layouts[node].rows is None:
            return value
        assert single, "several rows cannot be had from one"
        if isinstance(value, (tuple, list)):
            return [self._last_row(node, part) for part in value]
        if node not in self._made:
            self._made[node] = self._last_row(node, value)
        return self._made[node]

    def fixed(self, operand: fx.Node) -> Any:
        """Gives the value of an operand that does not depend on tokens, as it is."""
        time = self.plan.times[operand]
        if time is BindingTime.SIZE:
            return self.size(as_expr(operand.meta["val"]))
        return self._values[operand] if time is BindingTime.MEMORY else self._constants[operand]

    def axis(self, node: fx.Node, axis: int, *, single: bool) -> int:
        """Gives the index of one of a node's axes in the form with or without a row axis."""
        layout = self.plan.layouts[node]
        axis %= self.plan.rank(node)
        if not single or layout.rows is None or layout.merged:
            return axis
        assert axis != layout.rows, "the row axis is dropped"
        return axis - 1 if axis > layout.rows else axis

    def shape(self, node: fx.Node) -> list[Any]:
        """Gives the shape of a node in the form that it is computed in, ready for a reshape."""
        layout, sizes = self.plan.layouts[node], []
        for axis, size in enumerate(self.plan.shape(node)):
            if axis != layout.rows:
                sizes.append(self.size(as_expr(size)))
            elif layout.merged:
                per_row = as_expr(size) / self.plan.capture.length
                rows = 1 if self.is_single(node) else self._row_count()
                sizes.append(self.size(per_row) * rows)
            elif not self.is_single(node):
                sizes.append(self._row_count())
        unknown = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
        if len(unknown) == 1:
            sizes[unknown[0]] = -1
        return sizes

    def size(self, expr: sympy.Expr) -> Any:
        """Computes a dimension from the sizes at hand."""
        return evaluate(expr, self._sizes)

    def alignment(self, node: fx.Node) -> Alignment:
        """Gives the alignment of a node's own result."""
        rank, rows = self.plan.rank(node), self.plan.layouts[node].rows
        batch = self.plan.batch_axis(node)
        folded = 1
        if batch is not None and batch != rows:
            folded = hint(self.plan.shape(node)[batch]) // hint(
                self.plan.shape(self.plan.capture.tokens)[0]
            )
        return Alignment(
            rank=rank,
            rows=None if rows is None else rows - rank,
            batch=None if batch is None else batch - rank,
            folded=folded,
        )

    def aligned(self, consumer: fx.Node, operand: Any, into: Alignment) -> Any:
        """Gives an operand in the form that broadcasts into the consumer's result."""
        if not isinstance(operand, fx.Node):
            return operand
        plan, time = self.plan, self.plan.times[operand]
        single = self.is_single(consumer)
        if time is BindingTime.TOKEN and (consumer, operand) not in plan.keyed:
            value = self.raw(operand, single=single)
            if plan.layouts[operand].rows is not None:
                return value
        elif time is BindingTime.TOKEN:
            value = self.keyed(operand)
        else:
            value = self.fixed(operand)
            if self._row_axis(operand, into) is not None:
                return self._rows_of_constant(consumer, operand, into)
        return _without_axis(value, into.rows) if single else value

    def keyed(self, operand: fx.Node) -> Tensor:
        """Gives an operand for all tokens so far, from its cache, after writing the new rows."""
        source, axis, transpositions = self.plan.key_source(operand)
        index = next(
            i
            for i, cache in enumerate(self.plan.caches)
            if (cache.source, cache.axis) == (source, axis)
        )
        if index not in self._written:
            rows = self._values[source]
            if self.is_single(source):
                rows = rows.unsqueeze(axis)
            folded = self.alignment(source).folded
            self.caches[index] = _write(self.caches[index], rows, self._position, axis, folded)
            self._written.add(index)
        value = self.caches[index]
        for node in transpositions:
            value = node.target(value, *node.args[1:])  # type: ignore[operator]
        return value

    def causal_mask(self, *, single: bool) -> Tensor:
        """Gives which keys each row may see: (batch, capacity), or (batch, length, capacity)."""
        key = ("causal", single)
        if key not in self._made:
            positions = self._positions(single=single).unsqueeze(-1)
            self._made[key] = torch.arange(self.plan.capture.length) <= positions
        return self._made[key]

    def attention_mask(self, consumer: fx.Node, operand: fx.Node | None, into: Alignment) -> Any:
        """Gives the mask of a fused attention, broadcastable to (batch, heads, rows, keys).

        `operand` None stands for the causal mask.
        """
        single = self.is_single(consumer)
        pattern = None if operand is None else self.plan.causal.get(operand)
        if operand is None or (pattern is not None and pattern.masks_attention):
            mask = self.causal_mask(single=single)  # (batch, [length,] keys)
            key = ("attention", single, into.rank, into.folded)
            if key not in self._made:
                flat = mask.reshape(-1, *(1,) * (into.rank - 2), mask.shape[-1])
                shaped = flat if single else mask.unsqueeze(1) if into.rank == 4 else mask
                self._made[key] = _repeat(shaped, into.folded, 0)
            return self._made[key]
        mask = self.aligned(consumer, operand, into)
        has_rows = self._row_axis(operand, into) is not None
        return mask.unsqueeze(-2) if single and (has_rows or mask.dim() < into.rank) else mask

    def _measure(self, tokens: Tensor, memory: Sequence[Tensor]) -> dict[sympy.Symbol, Any]:
        sizes: dict[sympy.Symbol, Any] = {self.plan.capture.batch: tokens.shape[0]}
        for node, value in zip(self.plan.memory, memory, strict=True):
            for expected, size in zip(self.plan.shape(node), value.shape, strict=True):
                expr = as_expr(expected)
                if isinstance(expr, sympy.Symbol):
                    sizes.setdefault(expr, size)
        return sizes

    def _positions(self, *, single: bool) -> Tensor:
        if not single:
            count = self._row_count()
            return self._position[:, None] + torch.arange(count)
        return self._position if self._last is None else self._position + self._last

    def _row_count(self) -> Any:
        return self._values[self.plan.capture.tokens].shape[1]

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
        """Finds the axis of a constant that runs along the rows of the result."""
        if self.plan.times[operand] is not BindingTime.CONSTANT or into.rows is None:
            return None
        rank = self.plan.rank(operand)
        axes = (axis - rank for axis in self.plan.token_axes(operand))
        return next((axis for axis in axes if axis == into.rows), None)

    def _rows_of_constant(self, consumer: fx.Node, operand: fx.Node, into: Alignment) -> Tensor:
        """Gives a constant's rows at the positions of the new tokens, placed in the result."""
        single = self.is_single(consumer)
        key = ("rows", operand, single, into)
        if key in self._made:
            return self._made[key]
        if into.batch is None or into.rows is None or into.batch == into.rows:
            raise refuse(consumer, "a value per position meets a value whose batch axis is unclear")
        pattern = self.plan.causal.get(operand)
        if pattern is not None:
            mask = self.causal_mask(single=single)
            allowed, blocked = (torch.tensor(v, dtype=pattern.dtype) for v in pattern.values)
            picked = mask if pattern.is_mask else torch.where(mask, allowed, blocked)
            rest: tuple[int, ...] = (*(1,) * (into.rank - 2), mask.shape[-1])
        else:
            table = self._constants[operand]
            table = table.reshape((1,) * (into.rank - table.dim()) + tuple(table.shape))
            table = torch.movedim(table, into.rows, 0)
            rest = tuple(table.shape[1:])
            picked = F.embedding(self._positions(single=single), table.flatten(1))
        value = _place(picked, rest, into, single=single)
        self._made[key] = value
        return value


def _place(picked: Tensor, rest: tuple[int, ...], into: Alignment, *, single: bool) -> Tensor:
    """Shapes picked rows (batch, [length,] values) like the result that they broadcast into.

    `rest` is the shape of one row's values: the result's dimensions without its row axis.
    """
    assert into.batch is not None and into.rows is not None
    batch, rows = into.batch + into.rank, into.rows + into.rank
    batch_in_rest = batch - 1 if batch > rows else batch
    lead, folded = (1, rest[batch_in_rest]) if single else (2, rest[batch_in_rest])
    others = [*rest[:batch_in_rest], *rest[batch_in_rest + 1 :]]
    if folded != 1:
        # what belongs to one sequence moves beside the batch and is folded into it
        picked = torch.unflatten(picked, lead, rest).movedim(lead + batch_in_rest, 1)
        picked = picked.flatten(0, 1)
    elif len(others) != 1:
        picked = torch.unflatten(picked, lead, others)
    order = list(range(lead, lead + len(others)))
    for axis, source in sorted([(batch, 0)] if single else [(batch, 0), (rows, 1)]):
        order.insert(batch_in_rest if single else axis, source)
    value = picked if order == sorted(order) else picked.permute(order)
    return _repeat(value, into.folded // folded, order.index(0))


def _write(cache: Tensor, rows: Tensor, position: Tensor, axis: int, folded: int) -> Tensor:
    if cache.dim() == 4 and axis == -2:
        written: Tensor = cache_write(cache, rows, position)
        return written
    index = position[:, None] + torch.arange(rows.shape[axis])  # (batch, length)
    index = _repeat(index, folded, 0)
    sizes = [1] * rows.dim()
    sizes[0], sizes[axis] = index.shape
    return cache.scatter(axis, index.reshape(sizes).expand(rows.shape), rows)


def _repeat(value: Tensor, times: int, axis: int) -> Tensor:
    return value if times == 1 else value.repeat_interleave(times, axis)


def _without_axis(value: Any, axis: int | None) -> Any:
    if axis is None or not isinstance(value, Tensor) or value.dim() < -axis:
        return value
    return value.squeeze(axis)

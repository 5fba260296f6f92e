"""Rules for operators that change the shape of a value and keep its numbers."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import fx

from hybrid_deploy.export.analysis.rule import call, first_tensor, plain_operands
from hybrid_deploy.export.plan.cache_selection import select_state_cache
from hybrid_deploy.export.plan.plan import DecodePlan, Layout
from hybrid_deploy.export.plan.row_executor import RowExecutor
from hybrid_deploy.export.trace.capture import as_expr, hint
from hybrid_deploy.export.trace.refusal import refuse


class Reshape:
    """View, flatten, squeeze and the like: the row axis stays an axis, or joins the batch."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source = first_tensor(plan, node)
        before, after = plan.layouts[source], plan.token_axes(node)
        if len(after) != sum(axis is not None for axis in (before.rows, before.keys)):
            raise refuse(node, "the token axis is folded into another axis or lost here")
        if before.rows is None:
            return Layout(keys=after[0])
        merged = plan.per_row(node, after[0]) != 1
        self._check_order(plan, node, source, after[0])
        return Layout(rows=after[0], keys=after[1] if len(after) > 1 else None, merged=merged)

    def run(self, frame: RowExecutor, node: fx.Node) -> Any:
        source = first_tensor(frame.plan, node)
        value, shape = frame.raw(source, single=frame.is_single(node)), frame.shape(node)
        return value if _has_shape(value, shape) else value.reshape(shape)

    def _check_order(self, plan: DecodePlan, node: fx.Node, source: fx.Node, rows: int) -> None:
        """Refuses a view that reads the numbers in an order that mixes tokens."""
        before, sizes = plan.layouts[source], [hint(s) for s in plan.shape(node)]
        old = [hint(s) for s in plan.shape(source)]
        batch = hint(plan.shape(plan.capture.tokens)[0])
        assert before.rows is not None
        for folded in (plan.per_row(source, before.rows), plan.per_row(node, rows)):
            if folded not in (1, batch):
                raise refuse(node, "the token axis is folded into an axis other than the batch")
        separate = not before.merged and plan.per_row(node, rows) == 1
        if separate and prod(old[before.rows + 1 :]) != prod(sizes[rows + 1 :]):
            raise refuse(node, "this view mixes the values of different tokens")


class Transposition:
    """Operators that reorder axes."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source = first_tensor(plan, node)
        before, order = plan.layouts[source], axis_order(plan, node)
        rows, keys = (None if a is None else order.index(a) for a in (before.rows, before.keys))
        if rows is not None and keys is not None and rows > keys:
            raise refuse(node, "transposed attention scores are not supported")
        return Layout(rows=rows, keys=keys, merged=before.merged)

    def run(self, frame: RowExecutor, node: fx.Node) -> Any:
        source, single = first_tensor(frame.plan, node), frame.is_single(node)
        layout = frame.plan.layouts[source]
        order = axis_order(frame.plan, node)
        if single and layout.rows is not None and not layout.merged:
            order = [frame.axis(source, a, single=True) for a in order if a != layout.rows]
        value = frame.raw(source, single=single)
        return value if order == sorted(order) else value.permute(order)


class AlongAxis:
    """Operators along one axis that is not the token axis: slice, select, split, unbind.

    Args:
        argument: where the operator takes its axis.
        default: the axis if it is not given.
    """

    def __init__(self, argument: int, default: int = 0) -> None:
        self._argument = argument
        self._default = default

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source = first_tensor(plan, node)
        before, axis = plan.layouts[source], self._axis(plan, node)
        if axis in (before.rows, before.keys):
            if plan.shape(node) == plan.shape(source):
                return before
            if axis == before.rows and _drops_the_prefix(plan, node, axis):
                return before
            raise refuse(node, "this operator picks or splits along the token axis")
        if axis == plan.batch_axis(source):
            raise refuse(node, "this operator picks or splits sequences of the batch")
        if plan.rank(node) == plan.rank(source):
            return before
        rows, keys = (None if a is None else a - (a > axis) for a in (before.rows, before.keys))
        return Layout(rows=rows, keys=keys, merged=before.merged)

    def run(self, frame: RowExecutor, node: fx.Node) -> Any:
        source, single = first_tensor(frame.plan, node), frame.is_single(node)
        axis, layout = self._axis(frame.plan, node), frame.plan.layouts[source]
        args, kwargs = plain_operands(frame, node)
        if axis in (layout.rows, layout.keys):
            return args[0]
        place = frame.axis(source, axis, single=single)
        if "dim" in kwargs:
            return call(node, args, kwargs | {"dim": place})
        padding = [self._default] * (self._argument + 1 - len(args))
        values = [*args, *padding]
        values[self._argument] = place
        return call(node, values, kwargs)

    def _axis(self, plan: DecodePlan, node: fx.Node) -> int:
        given = node.args[self._argument] if len(node.args) > self._argument else None
        axis = node.kwargs.get("dim", self._default if given is None else given)
        assert isinstance(axis, int)
        return axis % plan.rank(first_tensor(plan, node))


class Joining:
    """Concatenation and stacking along another axis, or of memory before the tokens."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        parts = [n for n in node.all_input_nodes if plan.depends_on_tokens(n)]
        axes, joined = plan.token_axes(node), self._axis(plan, node)
        if axes == (joined,) and str(node.target) == "aten.cat.default":
            return self._bind_prefix(plan, node, joined)
        layouts = {plan.layouts[part] for part in parts}
        if len(layouts) != 1 or not axes or joined in axes:
            raise refuse(node, "values are joined along the token axis")
        layout = layouts.pop()
        if plan.rank(node) == plan.rank(parts[0]):
            return layout
        rows, keys = (None if a is None else a + (a >= joined) for a in (layout.rows, layout.keys))
        return Layout(rows=rows, keys=keys, merged=layout.merged)

    def _bind_prefix(self, plan: DecodePlan, node: fx.Node, joined: int) -> Layout:
        """Lets memory stand before the tokens, as in decoder-only models."""
        parts: Any = node.args[0]
        source = parts[-1]
        first = not any(plan.depends_on_tokens(part) for part in parts[:-1])
        first = first and all(plan.rank(part) == plan.rank(node) for part in parts)
        if not first or plan.layouts[source] != Layout(rows=joined) or plan.prefix_lengths(source):
            raise refuse(node, "values are joined along the token axis")
        before = sum(plan.shape(part)[joined] for part in parts[:-1])
        if plan.prefix is not None and as_expr(plan.prefix) != as_expr(before):
            raise refuse(node, "two different numbers of values are put before the tokens")
        plan.prefix = before
        return Layout(rows=joined)

    def run(self, frame: RowExecutor, node: fx.Node) -> Any:
        parts: Any = node.args[0]
        if is_prefix_join(frame.plan, node):
            return frame.join_prefix(node, parts)
        into, single = frame.alignment(node), frame.is_single(node)
        tokens = next(part for part in parts if frame.plan.depends_on_tokens(part))
        values = []
        for part in parts:
            value = frame.aligned(node, part, into)
            if not frame.plan.depends_on_tokens(part):
                model = frame.raw(tokens, single=single)
                width = [1] * model.dim()
                joined = frame.axis(node, self._axis(frame.plan, node), single=single)
                width[joined] = value.shape[joined]
                value = value + model.narrow(joined, 0, 1) * 0
            values.append(value)
        joined = frame.axis(node, self._axis(frame.plan, node), single=single)
        return call(node, (values, joined), {})

    def _axis(self, plan: DecodePlan, node: fx.Node) -> int:
        axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        assert isinstance(axis, int)
        return axis % plan.rank(node)


def is_prefix_join(plan: DecodePlan, node: fx.Node) -> bool:
    """Returns whether a node puts memory before the tokens."""
    parts: Any = node.args[0] if node.args else None
    if str(node.target) != "aten.cat.default" or not plan.depends_on_tokens(parts[-1]):
        return False
    return plan.prefix_lengths(node) and not plan.prefix_lengths(parts[-1])


class Expand:
    """Broadcasting to a larger shape; a value without rows may gain them."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source, after = node.args[0], plan.token_axes(node)
        assert isinstance(source, fx.Node)
        if not plan.depends_on_tokens(source):
            return Layout(rows=after[0])
        before = plan.layouts[source]
        if len(after) == 2 and before.keys is None and before.rows is not None:
            if before.rows - plan.rank(source) == after[1] - plan.rank(node):
                select_state_cache(plan, node, source)
            return Layout(rows=after[0], keys=after[1])
        if len(after) == 2 and before.rows is None:
            return Layout(rows=after[0], keys=after[1])
        shift = plan.rank(node) - plan.rank(source)
        rows, keys = (None if a is None else a + shift for a in (before.rows, before.keys))
        return Layout(rows=rows, keys=keys, merged=before.merged)

    def run(self, frame: RowExecutor, node: fx.Node) -> Any:
        value = frame.aligned(node, node.args[0], frame.alignment(node))
        shape = frame.shape(node)
        if -1 in shape and shape.index(-1) < len(shape) - value.dim():
            raise refuse(node, "a value is repeated for every sequence of the batch")
        return value.expand(shape)


class Repeat:
    """Tiling along axes that are not the token axis."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source = first_tensor(plan, node)
        before = plan.layouts[source]
        shift = plan.rank(node) - plan.rank(source)
        rows, keys = (None if a is None else a + shift for a in (before.rows, before.keys))
        times: Any = node.args[1]
        if any(axis is not None and times[axis] != 1 for axis in (rows, keys)):
            raise refuse(node, "this operator repeats values along the token axis")
        return Layout(rows=rows, keys=keys, merged=before.merged)

    def run(self, frame: RowExecutor, node: fx.Node) -> Any:
        layout, times = frame.plan.layouts[node], list(plain_operands(frame, node)[0][1])
        if frame.is_single(node) and layout.rows is not None and not layout.merged:
            del times[layout.rows]
        source = first_tensor(frame.plan, node)
        return frame.raw(source, single=frame.is_single(node)).repeat(times)


def _drops_the_prefix(plan: DecodePlan, node: fx.Node, axis: int) -> bool:
    """Returns whether a slice leaves out what stands before the tokens, and nothing else."""
    source = first_tensor(plan, node)
    if str(node.target) != "aten.slice.Tensor" or not plan.prefix_lengths(source):
        return False
    before, size = hint(plan.prefix or 0), hint(plan.shape(source)[axis])
    args = (*node.args[2:], None, None, None)
    given: list[Any] = [hint(a.meta["val"]) if isinstance(a, fx.Node) else a for a in args]
    return list(range(size))[given[0] : given[1] : given[2]] == list(range(before, size))


def _has_shape(value: Any, shape: list[Any]) -> bool:
    """Returns whether a value already has a shape, where at most one size may be unknown."""
    pairs = list(zip(value.shape, shape, strict=False))
    known = all(isinstance(a, int) and a == b for a, b in pairs if b != -1)
    return value.dim() == len(shape) and known and all(isinstance(b, int) for b in shape)


def axis_order(plan: DecodePlan, node: fx.Node) -> list[int]:
    """Gives, for every axis of a transposition's result, the axis of its operand."""
    rank, name = plan.rank(first_tensor(plan, node)), str(node.target)
    order = list(range(rank))
    args: Any = node.args[1:]
    if name == "aten.permute.default":
        return [axis % rank for axis in args[0]]
    if name == "aten.transpose.int":
        a, b = (axis % rank for axis in args)
        order[a], order[b] = b, a
        return order
    if name == "aten.movedim.int":
        order.insert(args[1] % rank, order.pop(args[0] % rank))
        return order
    return order[::-1]

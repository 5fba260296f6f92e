"""Rules for operators that move, drop or repeat elements: reshapes, slices, joins, expansions.

The row axis has to stay an axis of its own, or to be merged with the batch. Example, 4 heads:

    node of the trace                     several rows                     single row
    view       (B, L, 4, 16)              (B, R, 64) -> (B, R, 4, 16)      (B, 64) -> (B, 4, 16)
    transpose  (B, 4, L, 16)              (B, R, 4, 16) -> (B, 4, R, 16)   nothing to do
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import fx

from hybrid_deploy.export.analysis.row_joins import (
    bind_row_join,
    find_row_join,
    is_cut_by_all_users,
    run_row_join,
)
from hybrid_deploy.export.analysis.rules.relative_shift import bind_relative_shift
from hybrid_deploy.export.analysis.rules.rule import call_operator, operand_values, token_operand
from hybrid_deploy.export.plan.cache_selection import select_state_cache
from hybrid_deploy.export.plan.plan import DecodePlan, Layout
from hybrid_deploy.export.plan.row_executor import RowExecutor
from hybrid_deploy.export.trace.capture import as_expr, example_size
from hybrid_deploy.export.trace.refusal import refuse


class Reshape:
    """View, flatten, squeeze and others; the row axis stays alone or is merged with the batch."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source = token_operand(plan, node)
        layout, token_axes = plan.layouts[source], plan.token_axes(node)
        if len(token_axes) != sum(axis is not None for axis in (layout.rows, layout.keys)):
            raise refuse(node, "the token axis is folded into another axis or lost here")
        if layout.rows is None:
            return Layout(keys=token_axes[0])
        rows, keys = token_axes[0], token_axes[1] if len(token_axes) > 1 else None
        self._check_order(plan, node, source, rows)
        return Layout(rows=rows, keys=keys, merged=plan.values_per_token(node, rows) != 1)

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        source = token_operand(executor.plan, node)
        value = executor.token_value(source, single=executor.is_single(node))
        shape = executor.shape(node)
        return value if _has_shape(value, shape) else value.reshape(shape)

    def _check_order(self, plan: DecodePlan, node: fx.Node, source: fx.Node, rows: int) -> None:
        """Refuses a view in which a row holds elements of several tokens."""
        layout = plan.layouts[source]
        sizes = [example_size(size) for size in plan.shape(node)]
        source_sizes = [example_size(size) for size in plan.shape(source)]
        batch = example_size(plan.shape(plan.capture.tokens)[0])
        assert layout.rows is not None
        values_before = plan.values_per_token(source, layout.rows)
        values_after = plan.values_per_token(node, rows)
        if not {values_before, values_after} <= {1, batch}:
            raise refuse(node, "the token axis is folded into an axis other than the batch")
        is_separate = not layout.merged and values_after == 1
        if is_separate and prod(source_sizes[layout.rows + 1 :]) != prod(sizes[rows + 1 :]):
            raise refuse(node, "this view mixes the values of different tokens")


class Transposition:
    """Operators that reorder axes."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source = token_operand(plan, node)
        layout, order = plan.layouts[source], axis_order(plan, node)
        rows, keys = (None if a is None else order.index(a) for a in (layout.rows, layout.keys))
        if rows is not None and keys is not None and rows > keys:
            raise refuse(node, "transposed attention scores are not supported")
        return Layout(rows=rows, keys=keys, merged=layout.merged)

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        source, single = token_operand(executor.plan, node), executor.is_single(node)
        layout = executor.plan.layouts[source]
        order = axis_order(executor.plan, node)
        if single and layout.rows is not None and not layout.merged:
            order = [executor.axis(source, a, single=True) for a in order if a != layout.rows]
        value = executor.token_value(source, single=single)
        return value if order == sorted(order) else value.permute(order)


class AlongAxis:
    """Operators along one axis other than the token axis: slice, select, split, unbind.

    Args:
        argument: index of the operator's argument that is the axis.
        default: the axis if the node has no such argument.
    """

    def __init__(self, argument: int, default: int = 0) -> None:
        self._argument = argument
        self._default = default

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source = token_operand(plan, node)
        layout, axis = plan.layouts[source], self._axis(plan, node)
        if axis in (layout.rows, layout.keys):
            if plan.have_same_shape(node, source):
                return layout
            raise refuse(node, "this operator picks or splits along the token axis")
        if axis == plan.batch_axis(source):
            raise refuse(node, "this operator picks or splits sequences of the batch")
        if plan.rank(node) == plan.rank(source):
            return layout
        rows, keys = (None if a is None else a - (a > axis) for a in (layout.rows, layout.keys))
        return Layout(rows=rows, keys=keys, merged=layout.merged)

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        source, single = token_operand(executor.plan, node), executor.is_single(node)
        axis, layout = self._axis(executor.plan, node), executor.plan.layouts[source]
        if axis in (layout.rows, layout.keys):  # no size of its bounds has to be known
            return executor.token_value(source, single=single)
        args, kwargs = operand_values(executor, node)
        new_axis = executor.axis(source, axis, single=single)
        if "dim" in kwargs:
            return call_operator(node, args, kwargs | {"dim": new_axis})
        padding = [self._default] * (self._argument + 1 - len(args))
        values = [*args, *padding]
        values[self._argument] = new_axis
        return call_operator(node, values, kwargs)

    def _axis(self, plan: DecodePlan, node: fx.Node) -> int:
        positional = node.args[self._argument] if len(node.args) > self._argument else None
        axis = node.kwargs.get("dim", self._default if positional is None else positional)
        assert isinstance(axis, int)
        return axis % plan.rank(token_operand(plan, node))


class Concatenation:
    """Concatenation and stacking along another axis, or of memory as a prefix of the tokens."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        parts = [n for n in node.all_input_nodes if plan.depends_on_tokens(n)]
        axes, joined = plan.token_axes(node), self._axis(plan, node)
        pads_keys = len(parts) == 1 and joined == plan.layouts[parts[0]].keys
        if pads_keys and bind_relative_shift(plan, node, parts[0]):
            return plan.layouts[parts[0]]
        if joined in axes and str(node.target) == "aten.cat.default":
            return self._bind_along_tokens(plan, node, joined)
        layouts = {plan.layouts[part] for part in parts if not plan.layouts[part].is_whole}
        if len(layouts) != 1 or not axes or joined in axes:
            raise refuse(node, "values are joined along the token axis")
        layout = layouts.pop()
        if plan.rank(node) == plan.rank(parts[0]):
            return layout
        rows, keys = (None if a is None else a + (a >= joined) for a in (layout.rows, layout.keys))
        return Layout(rows=rows, keys=keys, merged=layout.merged)

    def _bind_along_tokens(self, plan: DecodePlan, node: fx.Node, joined: int) -> Layout:
        join = find_row_join(plan, node, joined)
        fits = plan.first_position(node, joined) >= 0 or is_cut_by_all_users(plan, node, joined)
        if join is not None and plan.prefix_size is None and fits:
            return bind_row_join(plan, node, join)
        return self._bind_prefix(plan, node, joined)

    def _bind_prefix(self, plan: DecodePlan, node: fx.Node, joined: int) -> Layout:
        """Records the memory that a decoder-only model concatenates before the tokens."""
        parts: Any = node.args[0]
        source = parts[-1]
        is_prefix = not any(plan.depends_on_tokens(part) for part in parts[:-1])
        is_prefix = is_prefix and all(plan.rank(part) == plan.rank(node) for part in parts)
        if not is_prefix or plan.layouts[source] != Layout(rows=joined) or plan.has_prefix(source):
            raise refuse(node, "values are joined along the token axis")
        prefix_size = sum(plan.shape(part)[joined] for part in parts[:-1])
        if plan.prefix_size is not None and as_expr(plan.prefix_size) != as_expr(prefix_size):
            raise refuse(node, "two different numbers of values are put before the tokens")
        plan.prefix_size = prefix_size
        return Layout(rows=joined)

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        parts: Any = node.args[0]
        if is_prefix_join(executor.plan, node):
            return executor.join_prefix(node, parts)
        layout, axis = executor.plan.layouts[node], self._axis(executor.plan, node)
        if layout.rows == axis and str(node.target) == "aten.cat.default":
            join = find_row_join(executor.plan, node, axis)
            assert join is not None
            return run_row_join(executor, node, join)
        alignment, single = executor.alignment(node), executor.is_single(node)
        tokens = next(part for part in parts if executor.plan.depends_on_tokens(part))
        joined = executor.axis(node, self._axis(executor.plan, node), single=single)
        values = []
        for part in parts:
            value = executor.aligned_value(node, part, alignment)
            if not executor.plan.depends_on_tokens(part):
                rows = executor.token_value(tokens, single=single).narrow(joined, 0, 1)
                value = value + torch.zeros_like(rows)  # broadcasts over batch and rows
            values.append(value)
        return call_operator(node, (values, joined), {})

    def _axis(self, plan: DecodePlan, node: fx.Node) -> int:
        axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        assert isinstance(axis, int)
        return axis % plan.rank(node)


def is_prefix_join(plan: DecodePlan, node: fx.Node) -> bool:
    """Returns whether a node concatenates memory before the tokens."""
    parts: Any = node.args[0] if node.args else None
    if str(node.target) != "aten.cat.default" or not plan.depends_on_tokens(parts[-1]):
        return False
    return plan.has_prefix(node) and not plan.has_prefix(parts[-1])


class Expand:
    """Broadcasting to a larger shape; a value without a row axis may gain one."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source, token_axes = node.args[0], plan.token_axes(node)
        assert isinstance(source, fx.Node)
        if not plan.depends_on_tokens(source):
            return Layout(rows=token_axes[0])
        layout = plan.layouts[source]
        if layout.is_whole and len(token_axes) == 1:
            return Layout(rows=token_axes[0])
        if len(token_axes) == 2 and layout.keys is None and layout.rows is not None:
            if layout.rows - plan.rank(source) == token_axes[1] - plan.rank(node):
                select_state_cache(plan, node, source)
            return Layout(rows=token_axes[0], keys=token_axes[1])
        if len(token_axes) == 2 and layout.rows is None:
            return Layout(rows=token_axes[0], keys=token_axes[1])
        shift = plan.rank(node) - plan.rank(source)
        rows, keys = (None if a is None else a + shift for a in (layout.rows, layout.keys))
        return Layout(rows=rows, keys=keys, merged=layout.merged)

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        value = executor.aligned_value(node, node.args[0], executor.alignment(node))
        shape = executor.shape(node)
        if -1 in shape and shape.index(-1) < len(shape) - value.dim():
            raise refuse(node, "a value is repeated for every sequence of the batch")
        return value.expand(shape)


class Repeat:
    """Tiling along axes that are not the token axis."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source = token_operand(plan, node)
        layout = plan.layouts[source]
        if layout.is_whole and len(plan.token_axes(node)) == 1:
            return Layout(rows=plan.token_axes(node)[0])
        shift = plan.rank(node) - plan.rank(source)
        rows, keys = (None if a is None else a + shift for a in (layout.rows, layout.keys))
        times: Any = node.args[1]
        if any(axis is not None and times[axis] != 1 for axis in (rows, keys)):
            raise refuse(node, "this operator repeats values along the token axis")
        return Layout(rows=rows, keys=keys, merged=layout.merged)

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        layout, times = executor.plan.layouts[node], list(operand_values(executor, node)[0][1])
        if executor.is_single(node) and layout.rows is not None and not layout.merged:
            del times[layout.rows]
        source = token_operand(executor.plan, node)
        if executor.plan.layouts[source].is_whole and layout.rows is not None:  # for every token
            value = executor.aligned_value(node, source, executor.alignment(node))
            if not executor.is_single(node):
                times[layout.rows] = executor.row_count()
            return value.repeat(times)
        return executor.token_value(source, single=executor.is_single(node)).repeat(times)


def _has_shape(value: Any, shape: list[Any]) -> bool:
    """Returns whether a value already has a shape, in which one size may be -1 for unknown."""
    pairs = list(zip(value.shape, shape, strict=False))
    equal = all(isinstance(a, int) and a == b for a, b in pairs if b != -1)
    return value.dim() == len(shape) and equal and all(isinstance(b, int) for b in shape)


def axis_order(plan: DecodePlan, node: fx.Node) -> list[int]:
    """Returns the operand's axis of each axis of a transposition's result, as permute takes it."""
    rank, name = plan.rank(token_operand(plan, node)), str(node.target)
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

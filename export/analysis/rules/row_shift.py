"""Rules for slices, picks and pads, also along the token axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from hybrid_deploy.export.analysis.row_joins import bind_row_join, find_row_join, run_row_join
from hybrid_deploy.export.analysis.rules.proven import ProvenRowWise
from hybrid_deploy.export.analysis.rules.relative_shift import bind_relative_shift
from hybrid_deploy.export.analysis.rules.rule import call_operator, operand_values, token_operand
from hybrid_deploy.export.analysis.rules.shape import AlongAxis
from hybrid_deploy.export.plan.cache_selection import select_state_cache
from hybrid_deploy.export.plan.plan import DecodePlan, Layout
from hybrid_deploy.export.plan.row_executor import RowExecutor
from hybrid_deploy.export.trace.capture import example_size
from hybrid_deploy.export.trace.refusal import refuse

_CAT, _SLICE, _SELECT = "aten.cat.default", "aten.slice.Tensor", "aten.select.int"
_ROW_BY_ROW = frozenset(
    {"aten.embedding.default", "aten.layer_norm.default", "aten.linear.default"}
)
_PICKS_ROWS = (
    "this operator picks or splits along the token axis: of single rows, the other tokens can read "
    "that of the first token alone"
)


class Pick(AlongAxis):
    """Slices and selections; along the token axis they cut rows off, or read the first row."""

    def __init__(self) -> None:
        super().__init__(argument=1)

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source = token_operand(plan, node)
        layout, axis = plan.layouts[source], self._axis(plan, node)
        if axis == layout.keys and not _keeps_size(plan, node, axis):
            return self._bind_keys(plan, node, source)
        if axis != layout.rows:
            return super().bind(plan, node)
        if self._keeps_rows(plan, node, axis):
            return layout
        if _reads_first_row(plan, node, axis):
            return self._bind_first_row(plan, node, source, axis)
        join = find_row_join(plan, node, axis) if plan.token_axes(node) else None
        if join is None:
            raise refuse(node, _PICKS_ROWS)
        return bind_row_join(plan, node, join)

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        plan, source = executor.plan, token_operand(executor.plan, node)
        axis, layout = self._axis(plan, node), plan.layouts[source]
        if axis == layout.keys and not _keeps_size(plan, node, axis):
            args, kwargs = operand_values(executor, node)
            keys = executor.axis(source, axis, single=executor.is_single(node))
            return call_operator(node, (args[0], keys, *args[2:]), kwargs)
        if axis != layout.rows or self._keeps_rows(plan, node, axis) or node in plan.first_rows:
            return super().run(executor, node)
        if plan.layouts[node].is_whole:
            value = executor.value_along_keys(node, source)
            return call_operator(node, (value, *node.args[1:]), node.kwargs)
        join = find_row_join(plan, node, axis)
        assert join is not None
        return run_row_join(executor, node, join)

    def _keeps_rows(self, plan: DecodePlan, node: fx.Node, axis: int) -> bool:
        return _keeps_size(plan, node, axis) or _drops_the_prefix(plan, node, axis)

    def _bind_keys(self, plan: DecodePlan, node: fx.Node, source: fx.Node) -> Layout:
        """Returns the layout of some of the keys; the graphs hold all of them."""
        layout, axes = plan.layouts[source], plan.token_axes(node)
        if layout.rows is None:
            return Layout(keys=axes[0] if axes else None)
        return Layout(axes[0], axes[1] if len(axes) > 1 else None, layout.merged)

    def _bind_first_row(
        self, plan: DecodePlan, node: fx.Node, source: fx.Node, axis: int
    ) -> Layout:
        """Returns the layout of the first token's row."""
        readers = _row_by_row_readers(plan, node, axis)
        if readers is not None:
            plan.first_rows.update(dict.fromkeys(readers, axis))
            return Layout(rows=axis)
        if plan.layouts[source].keys is not None or plan.prefix_size is not None:
            raise refuse(node, _PICKS_ROWS)
        select_state_cache(plan, node, source)
        return Layout()


class Pad:
    """Padding with a constant; along the token axis it puts rows before those of the tokens."""

    def __init__(self) -> None:
        self._elsewhere = ProvenRowWise()

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source = token_operand(plan, node)
        layout = plan.layouts[source]
        if _pads(plan, node, layout.keys) and bind_relative_shift(plan, node, source):
            return layout
        if not _pads(plan, node, layout.rows):
            return self._elsewhere.bind(plan, node)
        assert layout.rows is not None
        join = find_row_join(plan, node, layout.rows)
        if join is None:
            raise refuse(node, "this operator pads along the token axis and along another one")
        return bind_row_join(plan, node, join)

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        rows = executor.plan.layouts[token_operand(executor.plan, node)].rows
        if not _pads(executor.plan, node, rows):
            return self._elsewhere.run(executor, node)
        assert rows is not None
        join = find_row_join(executor.plan, node, rows)
        assert join is not None
        return run_row_join(executor, node, join)


def _keeps_size(plan: DecodePlan, node: fx.Node, axis: int) -> bool:
    """Returns whether an axis is as long after a slice as before it."""
    sizes = plan.shape(token_operand(plan, node))
    is_as_long = len(sizes) == plan.rank(node) and example_size(sizes[axis]) == example_size(
        plan.shape(node)[axis]
    )
    return is_as_long


def _drops_the_prefix(plan: DecodePlan, node: fx.Node, axis: int) -> bool:
    """Returns whether a slice removes exactly the prefix before the tokens."""
    source = token_operand(plan, node)
    if str(node.target) != "aten.slice.Tensor" or not plan.has_prefix(source):
        return False
    assert plan.prefix_size is not None
    prefix, size = example_size(plan.prefix_size), example_size(plan.shape(source)[axis])
    args = (*node.args[2:], None, None, None)
    bounds: list[Any] = [
        example_size(arg.meta["val"]) if isinstance(arg, fx.Node) else arg for arg in args
    ]
    sliced = list(range(size))[bounds[0] : bounds[1] : bounds[2]]
    return sliced == list(range(prefix, size))


def _pads(plan: DecodePlan, node: fx.Node, axis: int | None) -> bool:
    """Returns whether a pad adds elements along an axis, or removes some."""
    if axis is None:
        return False
    pads: Any = node.args[1]
    first = 2 * (plan.rank(node) - 1 - axis)
    return any(pads[first : first + 2])


def _reads_first_row(plan: DecodePlan, node: fx.Node, axis: int) -> bool:
    """Returns whether a slice or a selection along the row axis reads the first token's row."""
    source, name = token_operand(plan, node), str(node.target)
    if plan.first_position(source, axis) != 0 or plan.layouts[source].merged:
        return False
    if name == _SELECT:
        return node.args[2:] == (0,)
    size = example_size(plan.shape(source)[axis])
    args = (*node.args[2:], None, None, None)[:3]
    bounds: list[Any] = [
        example_size(arg.meta["val"]) if isinstance(arg, fx.Node) else arg for arg in args
    ]
    return list(range(size))[bounds[0] : bounds[1] : bounds[2]] == [0]


def _row_by_row_readers(plan: DecodePlan, node: fx.Node, axis: int) -> list[fx.Node] | None:
    """Returns a node and its users, if all of them end as the first row of a concatenation.

    The first token then reads a row that is computed from its own row, and needs no cache for it.
    """
    if str(node.target) != _SLICE:
        return None
    found, pending = [node], [node]
    while pending:
        value = pending.pop()
        for user in value.users:
            if str(user.target) == _CAT and _is_first_part(plan, user, value, axis):
                continue
            by_row = str(user.target) in _ROW_BY_ROW or torch.Tag.pointwise in getattr(
                user.target, "tags", ()
            )
            keeps_axis = (by_row and user.args[0] is value) or str(
                user.target
            ) == "aten.embedding.default"
            if not by_row or not keeps_axis or plan.rank(user) <= axis:
                return None
            if plan.shape(user)[axis] != 1 or plan.rank(user) < plan.rank(value):
                return None
            if user not in found:
                found.append(user)
                pending.append(user)
    return found


def _is_first_part(plan: DecodePlan, node: fx.Node, part: fx.Node, axis: int) -> bool:
    parts: Any = node.args[0]
    joined: Any = node.args[1] if len(node.args) > 1 else 0
    is_front = parts[0] is part and part not in parts[1:] and joined % plan.rank(node) == axis
    return is_front and example_size(plan.shape(node)[axis]) == plan.capture.length

"""Rows that are joined before the rows of tokens, or that are cut off before or after them.

A value whose rows come from other rows is found by counting. Its last row belongs to the last
token, so that rows cut off at the front change nothing, and rows cut off at the end delay the
others. Examples with L tokens, and the row of the token at position p:

    y = cat([c, x[:, 1:]], 1)     (B, L, W)    c at p = 0, otherwise x[p]
    y = cat([c, x[:, :-1]], 1)    (B, L, W)    c at p = 0, otherwise x[p - 1], from the cache of x
    y = pad(x, (0, 0, 1, -1))     (B, L, W)    the same with zeros for c
    y = x[:, 1:] - x[:, :-1]      (B, L-1, W)  x[p] - x[p - 1]; nobody reads it at p = 0
    z = cat([c, x], 1)            (B, L+1, W)  computed only where it is cut: z[:, :-1], z[:, 1:]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from hybrid_deploy.export.plan.axis_alignment import align_rows
from hybrid_deploy.export.plan.cache_selection import select_state_cache
from hybrid_deploy.export.plan.plan import BindingTime, DecodePlan, Layout
from hybrid_deploy.export.plan.row_executor import RowExecutor
from hybrid_deploy.export.trace.capture import as_expr, example_size
from hybrid_deploy.export.trace.refusal import refuse

_CAT, _SLICE = "aten.cat.default", "aten.slice.Tensor"
_PADS = ("aten.constant_pad_nd.default", "aten.pad.default")
_MOST_FRONT_ROWS = 32  # each of them is one more operator of the graphs

READS_NEXT_ROW = (
    "along the token axis a row reads the row of a token after it, which is not decoded yet"
)


@dataclass(frozen=True)
class RowJoin:
    """A value that is made of rows of another one, and of other rows before them.

    Attributes:
        node: the node that joins; the one whose operands the front rows are.
        axis: the row axis.
        front: the value and the index of each row at the front; a number is a row of itself.
        rows: the value whose rows follow.
        delay: how many tokens earlier the row is that a token reads.
    """

    node: fx.Node
    axis: int
    front: tuple[tuple[fx.Node | float, int], ...]
    rows: fx.Node
    delay: int = 0

    def first(self, plan: DecodePlan) -> int:
        """Returns the position of the first token that reads no front row."""
        return plan.first_position(self.rows, self.axis) + self.delay


def find_row_join(plan: DecodePlan, node: fx.Node, axis: int) -> RowJoin | None:
    """Returns how a node joins or cuts rows along an axis; None if it does not."""
    name = str(node.target)
    if name == _CAT:
        return _concatenated(plan, node, axis)
    if name in _PADS:
        return _padded(plan, node, axis)
    cuts = row_cuts(plan, node, axis) if name == _SLICE else None
    if cuts is None:
        return None
    source = node.args[0]
    assert isinstance(source, fx.Node)
    inner = find_row_join(plan, source, axis) if _is_open(plan, source, axis) else None
    join = RowJoin(node, axis, (), source) if inner is None else inner
    return replace(join, delay=join.delay + cuts[1])


def row_cuts(plan: DecodePlan, node: fx.Node, axis: int) -> tuple[int, int] | None:
    """Returns how many rows a slice cuts off at both ends; None if it depends on the length."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    longer, shorter = plan.shape(source)[axis], plan.shape_in_shorter_trace(source)[axis]
    cuts = _cuts(node, example_size(longer))
    at_shorter_length = _cuts(plan.capture.shorter_trace[node], example_size(shorter))
    return cuts if cuts == at_shorter_length else None


def bind_row_join(plan: DecodePlan, node: fx.Node, join: RowJoin) -> Layout:
    """Returns the layout of a node that joins or cuts rows, and selects the cache that it reads.

    Raises:
        UnsupportedModelError: a row reads the row of a later token.
    """
    if plan.prefix_size is not None:
        raise refuse(node, "rows are joined or cut along the token axis beside a prefix of memory")
    layout = plan.layouts.get(join.rows, Layout(rows=join.axis))
    if layout.merged:
        raise refuse(node, "rows are joined where the token axis is folded into the batch")
    if _is_open(plan, node, join.axis):
        if not is_cut_by_all_users(plan, node, join.axis):
            reason = "rows before the first token are computed like rows of tokens"
            raise refuse(node, READS_NEXT_ROW if join.delay < 0 else reason)
        return layout
    if join.delay < 0:
        raise refuse(node, READS_NEXT_ROW)
    if join.delay > 0:
        if not plan.depends_on_tokens(join.rows) or layout.keys is not None:
            raise refuse(node, "this operator cuts rows off along the token axis")
        select_state_cache(plan, node, join.rows)
    if len(join.front) > _MOST_FRONT_ROWS:
        raise refuse(node, f"more than {_MOST_FRONT_ROWS} rows are put before those of the tokens")
    return layout


def run_row_join(executor: RowExecutor, node: fx.Node, join: RowJoin) -> Any:
    """Returns the new rows of a node that joins or cuts rows."""
    plan, single = executor.plan, executor.is_single(node)
    if join.delay > 0 and (node, join.rows) in plan.accesses:
        value: Any = _earlier_rows(executor, node, join.rows, join.delay)
    elif plan.depends_on_tokens(join.rows):
        value = executor.token_value(join.rows, single=single)
    else:
        value = executor.aligned_value(join.node, join.rows, executor.alignment(node))
    if _is_open(plan, node, join.axis):
        return value
    first = join.first(plan)
    for distance, (source, index) in enumerate(reversed(join.front), 1):
        if first - distance >= 0:
            row = _front_row(executor, node, join, source, index)
            value = _where(_is_from(executor, node, first - distance + 1), value, row)
    return value


def is_cut_by_all_users(plan: DecodePlan, node: fx.Node, axis: int) -> bool:
    """Returns whether every user of a node cuts its rows down to those of the tokens."""
    for user in node.users:
        if str(user.target) != _SLICE or _slice_axis(plan, user) != axis:
            return False
        size = example_size(plan.shape(user)[axis])
        if row_cuts(plan, user, axis) is None or size > plan.capture.length:
            return False
    return True


def _is_open(plan: DecodePlan, node: fx.Node, axis: int) -> bool:
    """Returns whether a join of rows has no row of its own per token; only its slices have."""
    if str(node.target) not in (_CAT, *_PADS) or plan.prefix_size is not None:
        return False
    return plan.first_position(node, axis) < 0


def _concatenated(plan: DecodePlan, node: fx.Node, axis: int) -> RowJoin | None:
    parts: Any = node.args[0]
    rows = [index for index, part in enumerate(parts) if _has_rows(plan, part, axis)]
    if len(rows) != 1:
        return None
    counts = [plan.shape(part)[axis] for part in parts]
    others = counts[: rows[0]] + counts[rows[0] + 1 :]
    if not all(as_expr(count).is_Integer for count in others):
        return None
    front = [
        (part, row)
        for part, n in zip(parts[: rows[0]], counts, strict=False)
        for row in range(int(n))
    ]
    return RowJoin(node, axis, tuple(front), parts[rows[0]], -sum(map(int, counts[rows[0] + 1 :])))


def _padded(plan: DecodePlan, node: fx.Node, axis: int) -> RowJoin | None:
    source, pads = node.args[:2]
    assert isinstance(source, fx.Node) and isinstance(pads, (tuple, list))
    rest: list[Any] = list(node.args[2:])
    is_constant = str(node.target) == _PADS[0] or not rest or rest[0] == "constant"
    fill = (rest[0] if rest else 0) if str(node.target) == _PADS[0] else (rest[1:] or [None])[0]
    pairs = [pads[index : index + 2] for index in range(0, len(pads), 2)]
    amounts = {plan.rank(source) - 1 - index: tuple(pair) for index, pair in enumerate(pairs)}
    before, after = amounts.pop(axis, (0, 0))
    if not is_constant or before < 0 or any(any(pair) for pair in amounts.values()):
        return None
    return RowJoin(node, axis, ((float(fill or 0), 0),) * before, source, -after)


def _has_rows(plan: DecodePlan, part: fx.Node, axis: int) -> bool:
    """Returns whether a part of a concatenation has one row for every token."""
    if part in plan.first_rows:
        return False
    if plan.depends_on_tokens(part):
        return plan.layouts[part].rows == axis
    is_constant = plan.binding_times[part] is BindingTime.CONSTANT
    return is_constant and plan.token_axes(part) == (axis,)


def _cuts(node: fx.Node, size: int) -> tuple[int, int] | None:
    """Returns how many of `size` elements a slice cuts off at both ends; None if not only there."""
    bounds: list[Any] = [
        example_size(arg.meta["val"]) if isinstance(arg, fx.Node) else arg
        for arg in (*node.args[2:], None, None, None)[:3]
    ]
    kept = range(size)[bounds[0] : bounds[1] : bounds[2]]
    return (kept[0], size - 1 - kept[-1]) if kept and kept.step == 1 else None


def _slice_axis(plan: DecodePlan, node: fx.Node) -> int:
    axis: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return int(axis) % plan.rank(node)


def _front_row(
    executor: RowExecutor, node: fx.Node, join: RowJoin, source: fx.Node | float, index: int
) -> Any:
    """Returns a row that is read in place of a token's, in a shape that broadcasts."""
    plan, single = executor.plan, executor.is_single(node)
    if not isinstance(source, fx.Node):
        return torch.tensor(source, dtype=node.meta["val"].dtype)
    if source in plan.first_rows:
        return executor.token_value(source, single=single)
    if plan.depends_on_tokens(source):
        value = executor.token_value(source, single=False)
    else:
        value = executor.fixed_value(join.node, source)
    row = value.narrow(join.axis, index, 1)
    return row.squeeze(join.axis) if single else row


def _earlier_rows(
    executor: RowExecutor, consumer: fx.Node, operand: fx.Node, distance: int
) -> Tensor:
    """Returns the rows of an operand `distance` tokens before the new ones, from its cache.

    A token without so many tokens before it gets any row.
    """
    plan, single = executor.plan, executor.is_single(consumer)
    value, rows = executor.value_along_keys(consumer, operand), plan.layouts[operand].rows
    assert rows is not None
    rank, first = plan.rank(operand), plan.first_position(operand, rows)
    index = executor.positions(sympy.Integer(-distance - first), single=single)
    alignment = executor.alignment(operand)
    index = align_rows(index.unsqueeze(-1), (1,) * (rank - 1), alignment, single=single)
    index = index.unsqueeze(rows) if single else index
    places = [(index if axis == rows else value).shape[axis] for axis in range(rank)]
    picked = value.gather(rows, index.expand(places))
    return picked.squeeze(rows) if single else picked


def _is_from(executor: RowExecutor, node: fx.Node, position: int) -> Tensor:
    """Returns which rows belong to a position or a later one, broadcastable to a node's rows."""
    alignment, single = executor.alignment(node), executor.is_single(node)
    reached = executor.positions(sympy.Integer(0), single=single) >= position
    shape = (1,) * (alignment.rank - 1)
    return align_rows(reached.unsqueeze(-1), shape, alignment, single=single)


def _where(condition: Tensor, value: Any, other: Any) -> Any:
    """Returns `value` where a condition holds; ONNX Runtime's Where takes no bool values."""
    if value.dtype is torch.bool:
        return (value & condition) | (other & ~condition)
    return torch.where(condition, value, other)

"""The relative shift of Transformer-XL and of Music Transformer, found by where it moves elements.

A query is multiplied with one vector for each distance, the largest distance first. The scores of
query i then stand at the distances, and pad, reshape and slice move them to the keys. With L = 3:

    scores by distance       padded, (L, L + 1)        read as (L + 1, L), without its first row
    a2 a1 a0                 0  a2 a1 a0               a0 0  b2      query 0, distances 0
    b2 b1 b0                 0  b2 b1 b0               b1 b0 0       query 1, distances 1, 0
    c2 c1 c0                 0  c2 c1 c0               c2 c1 c0      query 2, distances 2, 1, 0

What stands behind a query's own key comes from other queries, and a causal mask hides it. A step
has one query, at position p, and gathers: key j gets what stands at L - 1 - p + j.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from hybrid_deploy.export.analysis.rules.rule import call_operator
from hybrid_deploy.export.plan.data_movement import is_movement
from hybrid_deploy.export.plan.plan import DecodePlan, Layout, RelativeShift
from hybrid_deploy.export.plan.row_executor import RowExecutor
from hybrid_deploy.export.trace.capture import example_size

_LONGEST = 8  # operators between the scores and their shifted form
_SLICE = "aten.slice.Tensor"


class ShiftedScores:
    """The operators of a relative shift: the last one gathers, and those before it do nothing."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        return plan.layouts[plan.relative_shifts[node].source]

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        shift = executor.plan.relative_shifts[node]
        if node is not shift.end:
            return None
        single = executor.is_single(node)
        scores = executor.token_value(shift.source, single=single)
        keys = executor.axis(node, _axes(executor.plan, node)[2], single=single)
        return torch.gather(scores, keys, _places(executor, node, single).expand(scores.shape))


def bind_relative_shift(plan: DecodePlan, node: fx.Node, source: fx.Node) -> bool:
    """Records a relative shift in the plan, and returns whether there is one.

    Args:
        plan: the plan of the nodes before this one.
        node: the node that pads the scores.
        source: the scores, with an axis of rows and one of keys.
    """
    layout = plan.layouts[source]
    if layout.rows is None or layout.keys is None or layout.merged or plan.prefix_size is not None:
        return False
    chain = [node]
    while len(chain) <= _LONGEST and not _ends(plan, chain[-1], source):
        users = [user for user in chain[-1].users if isinstance(user.meta["val"], Tensor)]
        if len(users) != 1 or not (is_movement(users[0]) or str(users[0].target) == _SLICE):
            return False
        chain.append(users[0])
    if not _ends(plan, chain[-1], source) or not _shifts(plan, chain, source):
        return False
    plan.relative_shifts.update(dict.fromkeys(chain, RelativeShift(source, chain[-1])))
    return True


def _ends(plan: DecodePlan, node: fx.Node, source: fx.Node) -> bool:
    return plan.have_same_shape(node, source) and plan.token_axes(node) == plan.token_axes(source)


def _shifts(plan: DecodePlan, chain: list[fx.Node], source: fx.Node) -> bool:
    """Returns whether some nodes move numbered scores from their distances to the keys."""
    sizes = [example_size(size) for size in plan.shape(source)]
    numbers = torch.arange(1, 1 + torch.Size(sizes).numel()).reshape(sizes)
    values: dict[fx.Node, Any] = {source: numbers}

    def value(operand: fx.Node) -> Any:
        if operand in values:
            return values[operand]
        constant = plan.constants.get(operand)
        if constant is None:
            return example_size(operand.meta["val"])
        return constant.long().expand([example_size(size) for size in plan.shape(operand)])

    for node in chain:
        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        values[node] = call_operator(node, args, kwargs)
    layout, length = plan.layouts[source], plan.capture.length
    assert layout.rows is not None and layout.keys is not None
    axes = (layout.rows, layout.keys)
    before, after = (v.movedim(axes, (-2, -1)) for v in (numbers, values[chain[-1]]))
    if before.shape[-2:] != (length, length):
        return False
    expected = before.gather(-1, _distances(torch.arange(length), length).expand(before.shape))
    return torch.equal(after.tril(), expected.tril())


def _distances(positions: Tensor, length: int) -> Tensor:
    """Returns where the score of every key stands, (..., keys), for queries at some positions."""
    places = torch.arange(length) + (length - 1) - positions.unsqueeze(-1)
    return places.clamp(max=length - 1)


def _places(executor: RowExecutor, node: fx.Node, single: bool) -> Tensor:
    """Returns the places of `_distances` for the new rows, with the axes of the scores."""
    plan = executor.plan
    batch, rows, keys = _axes(plan, node)
    positions = executor.positions(plan.prefix_length(node, rows), single=single)
    places = _distances(positions, plan.capture.length)
    places = places.repeat_interleave(plan.fold_factor(node), 0)
    own = [batch, keys] if single else [batch, rows, keys]
    places = places.permute(sorted(range(len(own)), key=lambda index: own[index]))
    for axis in sorted(set(range(plan.rank(node))) - {batch, rows, keys}):
        places = places.unsqueeze(executor.axis(node, axis, single=single))
    return places


def _axes(plan: DecodePlan, node: fx.Node) -> tuple[int, int, int]:
    """Returns the axes of the batch, the rows and the keys of shifted scores."""
    layout, batch = plan.layouts[node], plan.batch_axis(node)
    assert batch is not None and layout.rows is not None and layout.keys is not None
    return batch, layout.rows, layout.keys

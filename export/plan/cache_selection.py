"""Choosing what to keep for an operand: as little as possible, and once for all who share it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from math import prod

import torch
from torch import fx

from hybrid_deploy.export.plan.cached_value import Access, CachedValue, CacheLayout
from hybrid_deploy.export.plan.data_movement import numbered, path_back, replay
from hybrid_deploy.export.plan.plan import BindingTime, DecodePlan
from hybrid_deploy.export.trace.capture import hint
from hybrid_deploy.export.trace.refusal import refuse


def select_key_value_cache(
    plan: DecodePlan, consumer: fx.Node, operand: fx.Node, kind: str, *, transposed: bool = False
) -> None:
    """Keeps the keys or values of an attention.

    Args:
        plan: gets the access.
        consumer: the product.
        operand: its keys or values, (..., length, width) behind the batch.
        kind: `key` or `value`.
        transposed: the operand is (..., width, length).
    """
    rank = plan.rank(operand)
    length, width = (rank - 1, rank - 2) if transposed else (rank - 2, rank - 1)
    if plan.batch_axis(operand) != 0:
        raise refuse(operand, "the batch is not the first axis of an attention's keys or values")
    form = CacheLayout(0, tuple(range(1, rank - 2)), length, (width,), plan.folded(operand))
    plan.grant(consumer, operand, _shared_heads(plan, operand, form, kind))


def select_state_cache(plan: DecodePlan, consumer: fx.Node, operand: fx.Node) -> None:
    """Keeps a value of all tokens so far that is no key and no value, as a padding mask."""
    if plan.layouts[operand].rows is None:
        return
    values = _sources(plan, operand)
    index = min(range(len(values)), key=lambda i: (_count(plan, values[i]), i))
    source, path = values[index], tuple(reversed(values[:index]))
    rows, batch = plan.layouts[source].rows, plan.batch_axis(source)
    if rows is None or batch is None or plan.layouts[source].merged:
        raise refuse(operand, "keys with the token axis folded into another axis")
    others = [axis for axis in range(plan.rank(source)) if axis not in (rows, batch)]
    form = CacheLayout(
        batch,
        tuple(axis for axis in others if axis < rows),
        rows,
        tuple(axis for axis in others if axis > rows),
        plan.folded(source),
    )
    if _is_broadcast(plan, source, path):
        path = ()
    plan.grant(consumer, operand, Access(CachedValue(source, form, "state"), path=path))


def select_memory(
    plan: DecodePlan, consumer: fx.Node, operand: fx.Node, kind: str = "state"
) -> None:
    """Keeps a value of the memory as it is; masks before they are repeated for every head."""
    values = _sources(plan, operand)
    for index in sorted(range(len(values)), key=lambda i: (_count(plan, values[i]), i)):
        if _is_broadcast(plan, values[index], tuple(reversed(values[:index]))):
            plan.grant(consumer, operand, Access(CachedValue(values[index], None, kind)))
            return


def _shared_heads(plan: DecodePlan, operand: fx.Node, form: CacheLayout, kind: str) -> Access:
    """Finds keys or values before they were repeated for every head that shares them."""
    values = _sources(plan, operand)
    wanted = _count(plan, operand)
    for index in sorted(range(len(values)), key=lambda i: _count(plan, values[i])):
        source = values[index]
        if _count(plan, source) >= wanted:
            break
        places = numbered(_hints(plan, source))
        moved = replay(reversed(values[:index]), places, lambda n: _hints(plan, n))
        whole = form.to_cache(moved)
        for smaller in _forms(plan, source):
            part = smaller.to_cache(places)
            groups, rest = divmod(whole.shape[1], part.shape[1])
            same = not rest and part.shape[2:] == whole.shape[2:]
            if same and torch.equal(part.repeat_interleave(groups, 1), whole):
                return Access(CachedValue(source, smaller, kind), groups)
    return Access(CachedValue(operand, form, kind))


def _sources(plan: DecodePlan, operand: fx.Node) -> list[fx.Node]:
    """Lists the values that an operand was moved from, of the same binding time."""

    def goes_on(node: fx.Node) -> bool:
        if plan.times[node] is not plan.times[operand]:
            return False
        if plan.times[node] is BindingTime.MEMORY:
            return True
        layout = plan.layouts[node]
        return layout.rows is not None and layout.keys is None and not layout.merged

    return path_back(operand, goes_on)


def _forms(plan: DecodePlan, source: fx.Node) -> Iterator[CacheLayout]:
    """Lists the ways to see a value as (batch, heads, length, width)."""
    batch = plan.batch_axis(source)
    if batch is None:
        return
    others = [axis for axis in range(plan.rank(source)) if axis != batch]
    rows = plan.layouts[source].rows if plan.depends_on_tokens(source) else None
    for length, width in permutations(others, 2):
        if rows in (None, length):
            heads = tuple(axis for axis in others if axis not in (length, width))
            yield CacheLayout(batch, heads, length, (width,), plan.folded(source))


def _is_broadcast(plan: DecodePlan, source: fx.Node, path: tuple[fx.Node, ...]) -> bool:
    """Returns whether a path does no more than broadcasting would."""
    if not path:
        return True
    sizes, goal = _hints(plan, source), _hints(plan, path[-1])
    fits = len(sizes) == len(goal) and all(a in (1, b) for a, b in zip(sizes, goal, strict=True))
    places = numbered(sizes)
    moved = replay(path, places, lambda n: _hints(plan, n))
    return fits and torch.equal(moved, places.expand(goal))


def _hints(plan: DecodePlan, node: fx.Node) -> list[int]:
    return [hint(size) for size in plan.shape(node)]


def _count(plan: DecodePlan, node: fx.Node) -> int:
    return prod(_hints(plan, node))

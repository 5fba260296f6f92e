"""Selects the value that is cached for an operand: the smallest one from which it can be read.

An operand is often a moved copy of something smaller. Example, 2 key heads and 4 query heads:

    model   keys (B, 2, L, D) -> expand (B, 2, 2, L, D) -> reshape (B, 4, L, D) -> attention
    cached  keys (B, 2, L, D) with groups = 2; the attention reads each head for two query heads

To prove that, the movements are replayed on numbered elements, and the result is compared with
`keys.repeat_interleave(groups, 1)`. Consumers that read the same value share one cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from math import prod

import torch
from torch import fx

from hybrid_deploy.export.plan.cached_value import (
    BatchFirst,
    CacheAccess,
    CachedValue,
    CacheLayout,
)
from hybrid_deploy.export.plan.data_movement import movement_chain, numbered_tensor, replay
from hybrid_deploy.export.plan.plan import BindingTime, DecodePlan
from hybrid_deploy.export.trace.capture import as_expr, example_size
from hybrid_deploy.export.trace.refusal import refuse


def select_key_value_cache(
    plan: DecodePlan, consumer: fx.Node, operand: fx.Node, kind: str, *, transposed: bool = False
) -> None:
    """Selects what is cached for the keys or values of an attention.

    Args:
        plan: the plan; it receives the access.
        consumer: the matrix product or the fused attention.
        operand: its keys or values, (batch, ..., length, width).
        kind: `key` or `value`.
        transposed: whether the operand is (batch, ..., width, length) instead.

    Raises:
        UnsupportedModelError: the batch is not the operand's first axis.
    """
    rank = plan.rank(operand)
    length, width = (rank - 1, rank - 2) if transposed else (rank - 2, rank - 1)
    if plan.batch_axis(operand) != 0:
        raise refuse(operand, "the batch is not the first axis of an attention's keys or values")
    layout = CacheLayout(0, tuple(range(1, rank - 2)), length, (width,), plan.fold_factor(operand))
    plan.set_access(consumer, operand, _shared_heads(plan, operand, layout, kind))


def select_state_cache(plan: DecodePlan, consumer: fx.Node, operand: fx.Node) -> None:
    """Selects what is cached for an operand that is needed for all tokens so far.

    It is no attention's key or value: for example a padding mask that is computed from the tokens.

    Args:
        plan: the plan; it receives the access.
        consumer: the node that reads the operand along its key axis.
        operand: a value that depends on tokens. Nothing is selected if it has no row axis: it is
            then computed from cached values.

    Raises:
        UnsupportedModelError: the token axis is folded into another axis.
    """
    if plan.layouts[operand].rows is None:
        return
    values = _sources(plan, operand)
    index = min(range(len(values)), key=lambda i: (_element_count(plan, values[i]), i))
    source, path = values[index], tuple(reversed(values[:index]))
    rows, batch = plan.layouts[source].rows, plan.batch_axis(source)
    if rows is None or batch is None or plan.layouts[source].merged:
        raise refuse(operand, "keys with the token axis folded into another axis")
    axes = [axis for axis in range(plan.rank(source)) if axis not in (rows, batch)]
    layout = CacheLayout(
        batch,
        tuple(axis for axis in axes if axis < rows),
        rows,
        tuple(axis for axis in axes if axis > rows),
        plan.fold_factor(source),
    )
    if _is_broadcast(plan, source, path):
        path = ()
    plan.set_access(consumer, operand, CacheAccess(CachedValue(source, layout, "state"), path=path))


def select_memory(
    plan: DecodePlan, consumer: fx.Node, operand: fx.Node, kind: str = "state"
) -> None:
    """Selects the memory value that the encoder graph returns for an operand, in its own shape.

    The batch becomes its first axis. It is the smallest value that broadcasts to the operand: a
    mask before it is repeated per head.

    Args:
        plan: the plan; it receives the access.
        consumer: the node that reads the operand.
        operand: a value that depends on memory alone.
        kind: `mask` or `state`.
    """
    values = _sources(plan, operand)
    for index in sorted(range(len(values)), key=lambda i: (_element_count(plan, values[i]), i)):
        if _is_broadcast(plan, values[index], tuple(reversed(values[:index]))):
            cached = CachedValue(values[index], None, kind, _batch_first(plan, values[index]))
            plan.set_access(consumer, operand, CacheAccess(cached))
            return


def _batch_first(plan: DecodePlan, source: fx.Node) -> BatchFirst | None:
    """Returns how a memory value gets the batch as its first axis; None if nothing is to do."""
    axis = plan.batch_axis(source)
    if axis is None:
        return None
    size, batch = plan.shape(source)[axis], plan.shape(plan.capture.tokens)[0]
    if as_expr(size) != plan.capture.batch:
        return BatchFirst(axis, size // batch)
    return BatchFirst(axis) if axis else None


def _shared_heads(
    plan: DecodePlan, operand: fx.Node, layout: CacheLayout, kind: str
) -> CacheAccess:
    """Returns the access to the keys or values before they are repeated for each query head."""
    values = _sources(plan, operand)
    operand_count = _element_count(plan, operand)
    for index in sorted(range(len(values)), key=lambda i: _element_count(plan, values[i])):
        source = values[index]
        if _element_count(plan, source) >= operand_count:
            break
        numbers = numbered_tensor(_example_sizes(plan, source))
        moved = replay(reversed(values[:index]), numbers, lambda n: _example_sizes(plan, n))
        expected = layout.to_cache(moved)
        for source_layout in _candidate_layouts(plan, source):
            cached = source_layout.to_cache(numbers)
            groups, remainder = divmod(expected.shape[1], cached.shape[1])
            fits = not remainder and cached.shape[2:] == expected.shape[2:]
            if fits and torch.equal(cached.repeat_interleave(groups, 1), expected):
                return CacheAccess(CachedValue(source, source_layout, kind), groups)
    return CacheAccess(CachedValue(operand, layout, kind))


def _sources(plan: DecodePlan, operand: fx.Node) -> list[fx.Node]:
    """Returns the operand and the values of the same binding time that it was moved from."""

    def may_include(node: fx.Node) -> bool:
        if plan.binding_times[node] is not plan.binding_times[operand]:
            return False
        if plan.binding_times[node] is BindingTime.MEMORY:
            return True
        layout = plan.layouts[node]
        return layout.rows is not None and layout.keys is None and not layout.merged

    return movement_chain(operand, may_include)


def _candidate_layouts(plan: DecodePlan, source: fx.Node) -> Iterator[CacheLayout]:
    """Yields the layouts in which a value can be cached as (batch, heads, length, width)."""
    batch = plan.batch_axis(source)
    if batch is None:
        return
    axes = [axis for axis in range(plan.rank(source)) if axis != batch]
    rows = plan.layouts[source].rows if plan.depends_on_tokens(source) else None
    for length, width in permutations(axes, 2):
        if rows in (None, length):
            heads = tuple(axis for axis in axes if axis not in (length, width))
            yield CacheLayout(batch, heads, length, (width,), plan.fold_factor(source))


def _is_broadcast(plan: DecodePlan, source: fx.Node, path: tuple[fx.Node, ...]) -> bool:
    """Returns whether the nodes of a path compute the same as broadcasting."""
    if not path:
        return True
    sizes, goal = _example_sizes(plan, source), _example_sizes(plan, path[-1])
    fits = len(sizes) == len(goal) and all(a in (1, b) for a, b in zip(sizes, goal, strict=True))
    numbers = numbered_tensor(sizes)
    moved = replay(path, numbers, lambda n: _example_sizes(plan, n))
    return fits and torch.equal(moved, numbers.expand(goal))


def _example_sizes(plan: DecodePlan, node: fx.Node) -> list[int]:
    return [example_size(size) for size in plan.shape(node)]


def _element_count(plan: DecodePlan, node: fx.Node) -> int:
    return prod(_example_sizes(plan, node))

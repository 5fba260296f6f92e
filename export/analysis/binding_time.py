"""Binding-time analysis: what of a decoder is constant, what depends on memory, what on tokens.

The analysis walks the captured program once. Constants are folded, what depends on memory alone is
left to the encoder graph, and for what depends on tokens a rule (rules.py) says how it is computed
for new tokens only: where the row axis is, and which values are needed along a key axis, so that
they get a cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.analysis.rule_table import find_rule
from hybrid_deploy.export.analysis.shape_rules import is_prefix_join
from hybrid_deploy.export.plan.cache_selection import select_memory
from hybrid_deploy.export.plan.causal_mask import BLOCKED_BELOW, causal_pattern, later_places
from hybrid_deploy.export.plan.plan import BindingTime, DecodePlan, Layout
from hybrid_deploy.export.trace.capture import Capture, as_expr, evaluate, hint
from hybrid_deploy.export.trace.refusal import refuse


def analyse(capture: Capture) -> DecodePlan:
    """Finds how to decode one token at a time.

    Raises:
        UnsupportedModelError: an operator mixes tokens in a way that has no incremental form.
    """
    plan = DecodePlan(capture)
    for node in capture.nodes:
        if node.op == "output":
            continue
        plan.times[node] = _binding_time(plan, node)
        if plan.times[node] is BindingTime.CONSTANT:
            plan.constants[node] = _folded(plan, node, plan.constants)
            _note_mask(plan, node, plan.constants[node])
        elif plan.times[node] is BindingTime.MEMORY and _is_sized_by_memory(plan, node):
            plan.samples[node] = _folded(plan, node, plan.samples)
            _note_mask(plan, node, plan.samples[node])
        elif node is capture.tokens:
            plan.layouts[node] = Layout(rows=1)
        elif plan.times[node] is BindingTime.TOKEN:
            if not plan.masked.isdisjoint(node.all_input_nodes):
                plan.masked.add(node)
            plan.layouts[node] = find_rule(node).bind(plan, node)
    for head in capture.heads:
        _check_head(plan, head)
    _keep_the_rest_of_memory(plan)
    return plan


def _binding_time(plan: DecodePlan, node: fx.Node) -> BindingTime:
    capture = plan.capture
    if node.op == "placeholder":
        if node is capture.tokens:
            return BindingTime.TOKEN
        return BindingTime.MEMORY if node in capture.memory else BindingTime.CONSTANT
    value = node.meta.get("val")
    if value is None:
        return BindingTime.NOTHING
    if not isinstance(value, (Tensor, tuple, list)):
        return BindingTime.SIZE
    times = {plan.times[operand] for operand in node.all_input_nodes}
    if BindingTime.TOKEN in times:
        return BindingTime.TOKEN
    if BindingTime.MEMORY not in times and not _needs_memory_size(plan, node):
        return BindingTime.CONSTANT
    # Memory that is combined with something per token cannot be computed once per input.
    per_token = plan.token_axes(node) and not _is_sized_by_memory(plan, node)
    return BindingTime.TOKEN if per_token else BindingTime.MEMORY


def _needs_memory_size(plan: DecodePlan, node: fx.Node) -> bool:
    sizes = [n for n in node.all_input_nodes if plan.times[n] is BindingTime.SIZE]
    symbols = set().union(*(as_expr(n.meta["val"]).free_symbols for n in sizes))
    return bool(symbols - {plan.capture.batch})


def _is_sized_by_memory(plan: DecodePlan, node: fx.Node) -> bool:
    """Returns whether the memory's size, and nothing in it, decides the value of a node."""
    return node.op == "call_function" and all(
        operand in plan.samples or plan.times[operand] in (BindingTime.CONSTANT, BindingTime.SIZE)
        for operand in node.all_input_nodes
    )


def _folded(plan: DecodePlan, node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
    """Computes a node that no input changes; for a sample, at the sizes of the example."""
    if node in plan.capture.constants:
        return plan.capture.constants[node]

    def value(operand: fx.Node) -> Any:
        if plan.times[operand] is not BindingTime.SIZE:
            return plan.constants[operand] if operand in plan.constants else known[operand]
        if known is plan.samples:
            return hint(operand.meta["val"])
        return evaluate(as_expr(operand.meta["val"]), {plan.capture.batch: 1})

    with torch.no_grad():
        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _note_mask(plan: DecodePlan, node: fx.Node, table: object) -> None:
    """Notes of a table along two token axes whether it hides later tokens, and nothing else."""
    if not isinstance(table, Tensor) or len(plan.token_axes(node)) != 2:
        return
    if plan.token_axes(node) != (table.dim() - 2, table.dim() - 1):
        return
    pattern = causal_pattern(table)
    if pattern is not None:
        plan.causal[node] = pattern
    if _hides_later_tokens(table, plan.capture.length):
        plan.masked.add(node)


def _hides_later_tokens(table: Tensor, length: int) -> bool:
    """Returns whether a table that is added, subtracted or chosen by can hide later tokens."""
    if table.shape[-1] != table.shape[-2] or table.shape[-1] < length:
        return False
    later = table[..., later_places(table.shape[-1], length)]
    if table.dtype is torch.bool:
        return bool((later == later.flatten()[0]).all())
    return bool((later.abs() > -BLOCKED_BELOW).all())


def _check_head(plan: DecodePlan, head: fx.Node) -> None:
    if not plan.depends_on_tokens(head):
        raise UnsupportedModelError("what decode() returns does not depend on the tokens")
    if plan.layouts[head].rows != 1 or plan.batch_axis(head) != 0:
        shape = tuple(map(str, plan.shape(head)))
        raise refuse(
            head, f"decode() must return (batch, length, ...), not {shape}", ways_out=False
        )


def _keep_the_rest_of_memory(plan: DecodePlan) -> None:
    """Keeps the memory values that no rule asked for."""
    for node in plan.capture.nodes:
        if plan.depends_on_tokens(node) and not is_prefix_join(plan, node):
            for operand in node.all_input_nodes:
                of_memory = plan.times[operand] is BindingTime.MEMORY
                known = (node, operand) in plan.accesses or operand in plan.causal
                if of_memory and not known:
                    select_memory(plan, node, operand)

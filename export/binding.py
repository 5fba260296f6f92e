"""Binding-time analysis: what of a decoder is constant, what depends on memory, what on tokens.

The analysis walks the captured program once. Constants are folded, what depends on memory alone is
left to the encoder graph, and for what depends on tokens a rule (rules.py) says how it is computed
for new tokens only: where the row axis is, and which values are needed along a key axis, so that
they get a cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.capture import Capture, as_expr, evaluate
from hybrid_deploy.export.causal import causal_pattern
from hybrid_deploy.export.operators import find_rule
from hybrid_deploy.export.plan import BindingTime, Layout, Plan


def analyse(capture: Capture) -> Plan:
    """Finds how to decode one token at a time.

    Raises:
        UnsupportedModelError: an operator mixes tokens in a way that has no incremental form.
    """
    plan = Plan(capture)
    for node in capture.nodes:
        if node.op == "output":
            continue
        plan.times[node] = _binding_time(plan, node)
        if plan.times[node] is BindingTime.CONSTANT:
            _fold(plan, node)
            pattern = causal_pattern(plan.constants[node], capture.length)
            if pattern is not None:
                plan.causal[node] = pattern
        elif node is capture.tokens:
            plan.layouts[node] = Layout(rows=1)
        elif plan.times[node] is BindingTime.TOKEN:
            plan.layouts[node] = find_rule(node).bind(plan, node)
    if not plan.depends_on_tokens(capture.logits):
        raise UnsupportedModelError("the logits that decode() returns do not depend on tokens")
    _note_memory_border(plan)
    return plan


def _binding_time(plan: Plan, node: fx.Node) -> BindingTime:
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
    if BindingTime.MEMORY in times or _needs_memory_size(plan, node):
        # Memory that is combined with something per token cannot be computed once per input.
        return BindingTime.TOKEN if plan.token_axes(node) else BindingTime.MEMORY
    return BindingTime.CONSTANT


def _needs_memory_size(plan: Plan, node: fx.Node) -> bool:
    sizes = [n for n in node.all_input_nodes if plan.times[n] is BindingTime.SIZE]
    symbols = set().union(*(as_expr(n.meta["val"]).free_symbols for n in sizes))
    return bool(symbols - {plan.capture.batch})


def _fold(plan: Plan, node: fx.Node) -> None:
    if node in plan.capture.constants:
        plan.constants[node] = plan.capture.constants[node]
        return

    def known(operand: fx.Node) -> Any:
        if plan.times[operand] is BindingTime.SIZE:
            return evaluate(as_expr(operand.meta["val"]), {plan.capture.batch: 1})
        return plan.constants[operand]

    with torch.no_grad():
        args, kwargs = fx.map_arg((node.args, node.kwargs), known)
        plan.constants[node] = node.target(*args, **kwargs)  # type: ignore[operator]


def _note_memory_border(plan: Plan) -> None:
    """Completes the memory values that the decoder graphs use, in order of first use."""
    kinds, plan.memory = plan.memory, {}
    for node in plan.capture.nodes:
        if plan.depends_on_tokens(node):
            for operand in node.all_input_nodes:
                plan.note_memory(operand, kinds.get(operand, "state"))

"""Binding-time analysis: finds when the value of each node of a decoder is known.

One pass over the nodes of the trace, in topological order. Example, one layer of a decoder with
L = 12 tokens and S memory rows of 64 features, 4 heads, B sequences:

    node                          shape            binding time  where it is computed
    pos = positions[:, :12]       (1, 12, 64)      CONSTANT      now; a step picks one row of it
    ck = heads(linear(memory))    (B, 4, S, 16)    MEMORY        encoder graph, once per input
    x  = embedding(tokens) + pos  (B, 12, 64)      TOKEN         step graph, (B, 64)
    k  = heads(linear(x))         (B, 4, 12, 16)   TOKEN         step graph, one row; then cached
    s  = q @ k.transpose(-1, -2)  (B, 4, 12, 12)   TOKEN         step graph, (B, 4, 12)
    c  = softmax(q2 @ ck.mT)      (B, 4, 12, S)    TOKEN         step graph, (B, 4, S)

Constants are folded. Nodes that depend on memory alone move to the encoder graph. For each node
that depends on tokens, the rule of its operator (rules/table.py) finds which token axis holds the
new tokens and which all tokens so far, and which operands are needed for all tokens so far: these
get a cache, as `k` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.analysis.rules.rule import call_operator
from hybrid_deploy.export.analysis.rules.shape import is_prefix_join
from hybrid_deploy.export.analysis.rules.table import rule_of
from hybrid_deploy.export.plan.cache_selection import select_memory
from hybrid_deploy.export.plan.causal_mask import BLOCKED_BELOW, causal_pattern, future_mask
from hybrid_deploy.export.plan.plan import BindingTime, DecodePlan, Layout
from hybrid_deploy.export.trace.capture import Capture, as_expr, evaluate, example_number
from hybrid_deploy.export.trace.refusal import refuse


def analyse(capture: Capture) -> DecodePlan:
    """Returns the plan of the incremental decoder: how to decode one token at a time.

    Args:
        capture: the traces of the decoder.

    Raises:
        UnsupportedModelError: an operator mixes tokens in a way that has no incremental form.
    """
    plan = DecodePlan(capture)
    for node in capture.nodes:
        if node.op == "output":
            continue
        plan.binding_times[node] = _binding_time(plan, node)
        if plan.binding_times[node] is BindingTime.CONSTANT:
            plan.constants[node] = _fold(plan, node, plan.constants)
            _record_mask(plan, node, plan.constants[node])
        elif plan.binding_times[node] is BindingTime.MEMORY and _is_sized_by_memory(plan, node):
            plan.example_values[node] = _fold(plan, node, plan.example_values)
            _record_mask(plan, node, plan.example_values[node])
        elif node is capture.tokens:
            plan.layouts[node] = Layout(rows=1)
        elif plan.binding_times[node] is BindingTime.TOKEN:
            if not plan.causally_masked.isdisjoint(node.all_input_nodes):
                plan.causally_masked.add(node)
            _check_sizes(node)
            plan.layouts[node] = rule_of(plan, node).bind(plan, node)
    for index, head in enumerate(capture.heads):
        _check_head(plan, index, head)
    _select_remaining_memory(plan)
    return plan


def _check_sizes(node: fx.Node) -> None:
    """Refuses an operator whose output has a size that depends on values, as that of nonzero.

    Raises:
        UnsupportedModelError: a size of the output depends on the values of a tensor.
    """
    value = node.meta["val"]
    for part in value if isinstance(value, (tuple, list)) else (value,):
        sizes = part.shape if isinstance(part, Tensor) else (part,)
        if any(isinstance(size, torch.SymInt) and not size.node.has_hint() for size in sizes):
            raise refuse(node, "it returns a number of rows that depends on the values of a tensor")


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
    times = {plan.binding_times[operand] for operand in node.all_input_nodes}
    if BindingTime.TOKEN in times:
        return BindingTime.TOKEN
    if BindingTime.MEMORY not in times and not _needs_memory_size(plan, node):
        return BindingTime.CONSTANT
    # Memory combined with a table per token has a row per position: only a step knows which row.
    has_token_axis = plan.token_axes(node) and not _is_sized_by_memory(plan, node)
    return BindingTime.TOKEN if has_token_axis else BindingTime.MEMORY


def _needs_memory_size(plan: DecodePlan, node: fx.Node) -> bool:
    """Returns whether an operand is a size of the memory: any size other than the batch's."""
    sizes = [n for n in node.all_input_nodes if plan.binding_times[n] is BindingTime.SIZE]
    symbols = set().union(*(as_expr(n.meta["val"]).free_symbols for n in sizes))
    return bool(symbols - {plan.capture.batch})


def _is_sized_by_memory(plan: DecodePlan, node: fx.Node) -> bool:
    """Returns whether a node depends on the memory's sizes alone and not on its values."""
    return node.op == "call_function" and all(
        operand in plan.example_values
        or plan.binding_times[operand] in (BindingTime.CONSTANT, BindingTime.SIZE)
        for operand in node.all_input_nodes
    )


def _fold(plan: DecodePlan, node: fx.Node, operand_values: Mapping[fx.Node, Any]) -> Any:
    """Computes a node from constants; with `plan.example_values`, at the sizes of the example."""
    if node in plan.capture.constants:
        return plan.capture.constants[node]

    def value(operand: fx.Node) -> Any:
        if plan.binding_times[operand] is not BindingTime.SIZE:
            return plan.constants[operand] if operand in plan.constants else operand_values[operand]
        if operand_values is plan.example_values:
            return example_number(operand.meta["val"])
        return evaluate(as_expr(operand.meta["val"]), {plan.capture.batch: 1})

    with torch.no_grad():
        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        return call_operator(node, args, kwargs)


def _record_mask(plan: DecodePlan, node: fx.Node, table: object) -> None:
    """Records whether a table (..., tokens, tokens) is a causal pattern and hides later tokens."""
    if not isinstance(table, Tensor) or len(plan.token_axes(node)) != 2:
        return
    if plan.token_axes(node) != (table.dim() - 2, table.dim() - 1):
        return
    pattern = causal_pattern(table)
    if pattern is not None:
        plan.causal_patterns[node] = pattern
    if _hides_later_tokens(table, plan.capture.length):
        plan.causally_masked.add(node)


def _hides_later_tokens(table: Tensor, length: int) -> bool:
    """Returns whether all entries for later tokens hide them: large values, or the same bool."""
    if table.shape[-1] != table.shape[-2] or table.shape[-1] < length:
        return False
    future = table[..., future_mask(table.shape[-1], length)]
    if table.dtype is torch.bool:
        return bool((future == future.flatten()[0]).all())
    return bool((future.abs() > -BLOCKED_BELOW).all())


def _check_head(plan: DecodePlan, index: int, head: fx.Node) -> None:
    if not plan.depends_on_tokens(head):
        raise UnsupportedModelError(
            f"output {index} of decode(), behind the logits, does not depend on the tokens; leave "
            "it out"
            if index
            else "the logits that decode() returns do not depend on the tokens"
        )
    if plan.layouts[head].rows != 1 or plan.batch_axis(head) != 0:
        shape = tuple(map(str, plan.shape(head)))
        raise refuse(
            head, f"decode() must return (batch, length, ...), not {shape}", ways_out=False
        )


def _select_remaining_memory(plan: DecodePlan) -> None:
    """Selects the memory values that consumers need and no rule selected."""
    for node in plan.capture.nodes:
        if plan.depends_on_tokens(node) and not is_prefix_join(plan, node):
            for operand in node.all_input_nodes:
                is_memory = plan.binding_times[operand] is BindingTime.MEMORY
                selected = (node, operand) in plan.accesses or operand in plan.causal_patterns
                if is_memory and not selected:
                    select_memory(plan, node, operand)

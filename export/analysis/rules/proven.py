"""The rule for operators that a numerical test proves to treat tokens one by one.

The row axis is kept, with size one for a single row, so that every argument keeps its meaning:

    node of the trace                 several rows           single row
    glu(x, 2)    (B, L, W)            glu(x (B, R, 2W), 2)   glu(x (B, 1, 2W), 2) -> (B, W)
    topk(x, 8)   (B, L, 8), twice     (B, R, 8), twice       (B, 1, 8) -> (B, 8), twice
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from hybrid_deploy.export.analysis.row_test import UNDECIDED, mixing
from hybrid_deploy.export.analysis.rules.rule import call_operator
from hybrid_deploy.export.plan.plan import BindingTime, DecodePlan, Layout
from hybrid_deploy.export.plan.row_executor import RowExecutor
from hybrid_deploy.export.trace.refusal import refuse

PLACES = (
    "the places of these values depend on which tokens stand before a token, so no token can be "
    "computed alone; if they are image or sound features in place of placeholder tokens, let the "
    "features stand before the text: decode(tokens, memory) over cat([memory, embedding(tokens)], "
    "1), with the fixed tokens before the image embedded by encode"
)
_AUTOCAST = "wrap_with_autocast"
AUTOCAST = "autocast computes in 16 bits, and an export computes in float32; leave out autocast"
_CONVERSIONS = (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype)
_EQUAL = (torch.ops.aten.eq.Scalar, torch.ops.aten.eq.Tensor)


class ProvenRowWise:
    """PyTorch's operators without a rule, admitted if the test proves that no tokens mix.

    An operator of the user's own is refused: it has no translation to ONNX either.
    """

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        if str(node.target) == _AUTOCAST:
            raise refuse(node, AUTOCAST, ways_out=False)
        if getattr(node.target, "namespace", "aten") != "aten":
            raise refuse(node, "this operator is not PyTorch's own and has no rule")
        layout = self._layout(plan, node)
        if layout is None or _follows_length(plan, node):
            raise refuse(node, UNDECIDED)
        reason = mixing(plan, node, layout)
        if reason is not None and _finds_places(node):
            raise refuse(node, PLACES, ways_out=False)
        if reason is not None:
            raise refuse(node, reason)
        return layout

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg(
            (node.args, node.kwargs), lambda operand: _with_row_axis(executor, node, operand)
        )
        result, layout = call_operator(node, args, kwargs), executor.plan.layouts[node]
        if not executor.is_single(node) or layout.merged or layout.rows is None:
            return result
        if isinstance(result, Tensor):
            return result.squeeze(layout.rows)
        return tuple(value.squeeze(layout.rows) for value in result)

    def _layout(self, plan: DecodePlan, node: fx.Node) -> Layout | None:
        """Returns the layout that the result has if no tokens mix; None if it has none."""
        operands = [plan.layouts[n] for n in node.all_input_nodes if plan.depends_on_tokens(n)]
        axes, batch = plan.token_axes(node), plan.batch_axis(node)
        merged = {layout.merged for layout in operands if layout.rows is not None}
        has_keys = any(layout.keys is not None for layout in operands)
        if len(merged) != 1 or batch is None or len(axes) != (2 if has_keys else 1):
            return None
        is_merged = merged.pop()
        if is_merged != (batch == axes[0]):
            return None
        return Layout(axes[0], axes[1] if has_keys else None, is_merged)


def _finds_places(node: fx.Node) -> bool:
    """Returns whether a node puts values in the places of certain tokens, or counts the places."""
    if node.target is torch.ops.aten.masked_scatter.default:
        return True
    counted = node.all_input_nodes[0]
    while counted.target in _CONVERSIONS:
        counted = counted.all_input_nodes[0]
    return node.target is torch.ops.aten.cumsum.default and counted.target in _EQUAL


def _follows_length(plan: DecodePlan, node: fx.Node) -> bool:
    """Returns whether a number among a node's arguments differs between the two traces."""

    def numbers(args: Any) -> Any:
        return fx.map_arg(args, lambda operand: None)

    shorter = plan.capture.shorter_trace[node]
    return bool(numbers((node.args, node.kwargs)) != numbers((shorter.args, shorter.kwargs)))


def _with_row_axis(executor: RowExecutor, node: fx.Node, operand: fx.Node) -> Any:
    """Returns the value of an operand with a row axis, and with the batch's size."""
    plan, single = executor.plan, executor.is_single(node)
    if plan.depends_on_tokens(operand):
        value, layout = executor.token_value(operand, single=single), plan.layouts[operand]
        has_row_axis = not single or layout.merged or layout.rows is None
        return value if has_row_axis else value.unsqueeze(layout.rows)
    if plan.binding_times[operand] is BindingTime.SIZE:
        return executor.fixed_value(node, operand)
    if not plan.token_axes(operand):
        return executor.fixed_value(node, operand).expand(executor.full_shape(operand))
    value = executor.aligned_value(node, operand, executor.alignment(node))
    rows = plan.layouts[node].rows
    assert rows is not None
    return value.unsqueeze(rows) if single and plan.rank(operand) == plan.rank(node) else value

"""The rule for values that all rows share: the first token's row, and what is computed from it.

Such a value depends on tokens, but has no token axis. It is computed as in the model:

    first = x[:, :1]            (B, 1, W)    read from the cache of x
    shift = linear(first)       (B, 1, W)    the model's own operator
    y = x + shift               (B, L, W)    a row-wise operator, which broadcasts it
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from hybrid_deploy.export.analysis.rules.rule import call_operator
from hybrid_deploy.export.plan.plan import BindingTime, DecodePlan, Layout
from hybrid_deploy.export.plan.row_executor import RowExecutor


def is_whole(plan: DecodePlan, node: fx.Node) -> bool:
    """Returns whether a node depends on tokens by values alone that all rows share."""
    operands = [n for n in node.all_input_nodes if plan.depends_on_tokens(n)]
    shared = bool(operands) and all(plan.layouts[n].is_whole for n in operands)
    return shared and not plan.token_axes(node)


class WholeValue:
    """Any operator on values without a token axis."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        """Returns the layout of a value without token axes."""
        return Layout()

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        """Returns the result of the model's own operator."""

        def value(operand: fx.Node) -> Any:
            if executor.plan.depends_on_tokens(operand):
                return executor.token_value(operand, single=False)
            fixed = executor.fixed_value(node, operand)
            if executor.plan.binding_times[operand] is BindingTime.SIZE:
                return fixed
            assert isinstance(fixed, Tensor)
            return fixed.expand(executor.full_shape(operand))

        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        return call_operator(node, args, kwargs)

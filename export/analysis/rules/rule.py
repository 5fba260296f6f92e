"""The interface of an operator rule: how an operator is computed for new tokens only.

A rule has two methods. `bind` runs once, in the analysis: it finds the layout of the result (which
axis holds the new tokens, and which all tokens so far) and refuses a node that has no incremental
form. `run` computes the node for the new tokens; it runs when torch.onnx traces a graph. The rules
are in rowwise.py, row_shift.py, shape.py, attention.py, proven.py and custom.py; table.py maps
operators to rules.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import fx

from hybrid_deploy.export.plan.plan import BindingTime, DecodePlan, Layout
from hybrid_deploy.export.plan.row_executor import RowExecutor
from hybrid_deploy.export.trace.refusal import refuse


class Rule(Protocol):
    """The incremental form of a family of operators."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        """Returns the layout of a node's result and records in the plan which operands are cached.

        Args:
            plan: the plan of the nodes before this one.
            node: a node that depends on tokens.

        Raises:
            UnsupportedModelError: the operator has no incremental form here.
        """
        ...

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        """Returns the value of a node for the executor's tokens."""
        ...


def call_operator(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Returns the result of a node's operator for the given arguments."""
    return node.target(*args, **kwargs)  # type: ignore[operator]


def row_and_key_axes(layout: Layout) -> tuple[int | None, int | None]:
    """Returns the row axis and the key axis of a layout; None for an axis that it lacks."""
    return layout.rows, layout.keys


def token_operand(plan: DecodePlan, node: fx.Node) -> fx.Node:
    """Returns the first operand of a node, which has to depend on tokens.

    Raises:
        UnsupportedModelError: it does not depend on tokens.
    """
    source = node.args[0]
    if not plan.depends_on_tokens(source):
        raise refuse(node, "the tokens do not enter this operator as its first operand")
    assert isinstance(source, fx.Node)
    return source


def operand_values(executor: RowExecutor, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the positional and keyword arguments of a node, with values in place of nodes.

    Values that depend on tokens have a row axis exactly if the node is computed with one.
    """
    single = executor.is_single(node)

    def value(operand: fx.Node) -> Any:
        if executor.plan.binding_times[operand] is BindingTime.TOKEN:
            return executor.token_value(operand, single=single)
        return executor.fixed_value(node, operand)

    args, kwargs = fx.map_arg((node.args, node.kwargs), value)
    return tuple(args), dict(kwargs)

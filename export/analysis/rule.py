"""What a rule is: which operators can be computed for new tokens only, and how.

A rule has two methods. `bind` runs once, in the analysis: it says where the tokens are in the
result and refuses what has no incremental form. `run` computes the result from a frame's operands.
The rules are in rowwise_rules.py, shape_rules.py and attention_rules.py; which operator has which
rule stands in operators.py.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import fx

from hybrid_deploy.export.plan.plan import BindingTime, DecodePlan, Layout
from hybrid_deploy.export.plan.row_executor import RowExecutor
from hybrid_deploy.export.trace.refusal import refuse


class Rule(Protocol):
    """How one kind of operator is made incremental."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        """Returns the layout of the result.

        Raises:
            UnsupportedModelError: the operator has no incremental form here.
        """
        ...

    def run(self, frame: RowExecutor, node: fx.Node) -> Any:
        """Computes the result."""
        ...


def call(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Calls the operator of a node."""
    return node.target(*args, **kwargs)  # type: ignore[operator]


def axes(layout: Layout) -> tuple[int | None, int | None]:
    """Returns the row axis and the key axis."""
    return layout.rows, layout.keys


def first_tensor(plan: DecodePlan, node: fx.Node) -> fx.Node:
    """Returns the operand that a row-wise operator works on."""
    source = node.args[0]
    if not plan.depends_on_tokens(source):
        raise refuse(node, "the tokens do not enter this operator as its first operand")
    assert isinstance(source, fx.Node)
    return source


def plain_operands(frame: RowExecutor, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns a node's arguments as they are, tokens in the form that the node is computed in."""
    single = frame.is_single(node)

    def value(operand: fx.Node) -> Any:
        if frame.plan.times[operand] is BindingTime.TOKEN:
            return frame.raw(operand, single=single)
        return frame.fixed(node, operand)

    args, kwargs = fx.map_arg((node.args, node.kwargs), value)
    return tuple(args), dict(kwargs)

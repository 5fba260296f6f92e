"""Rules that users add for operators of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from hybrid_deploy.errors import UsageError
from hybrid_deploy.export.analysis.rule import first_tensor, plain_operands
from hybrid_deploy.export.plan.plan import DecodePlan, Layout
from hybrid_deploy.export.plan.row_executor import RowExecutor
from hybrid_deploy.export.trace.refusal import refuse

Function = TypeVar("Function", bound=Callable[..., Any])

_RULES: dict[str, CustomRule] = {}
_TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {}


def row_rule(
    operator: str, *, onnx: Callable[..., Any] | None = None
) -> Callable[[Function], Function]:
    """Declares that an operator treats tokens one by one, so that it can run on new ones alone.

    The decorated function takes the operator's arguments and computes its result. Its first
    argument has the tokens on the axis that they have in the model, but may hold fewer of them
    than the model was traced with; the result must have them on the same axis.

        @row_rule("mylib::gated_norm")
        def gated_norm(rows, weight):  # rows: (batch, tokens, width)
            return torch.nn.functional.rms_norm(rows, weight.shape) * rows.sigmoid()

    Args:
        operator: its name in PyTorch, `namespace::name` or `namespace::name.overload`.
        onnx: an onnxscript function that the operator becomes, if the decorated function calls
            the operator itself and PyTorch's exporter does not know it.

    Raises:
        UsageError: PyTorch has no such operator.
    """
    overload = _overload(operator)

    def register(function: Function) -> Function:
        _RULES[str(overload)] = CustomRule(function)
        if onnx is not None:
            _TRANSLATIONS[overload] = onnx
        return function

    return register


def custom_rule(node: fx.Node) -> CustomRule | None:
    """Returns the rule that a user added for a node's operator."""
    return _RULES.get(str(node.target))


def custom_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns what users' operators become in ONNX."""
    return dict(_TRANSLATIONS)


class CustomRule:
    """A user's operator that treats tokens one by one.

    Args:
        function: computes the operator on some of the tokens.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source = first_tensor(plan, node)
        others = [n for n in node.all_input_nodes if n is not source and plan.depends_on_tokens(n)]
        layout = plan.layouts[source]
        if others or layout.keys is not None or layout.merged:
            raise refuse(node, "a row rule takes the tokens in its first operand, as one axis")
        if plan.token_axes(node) != (layout.rows,):
            raise refuse(node, "the result of a row rule must have the tokens on the same axis")
        return layout

    def run(self, frame: RowExecutor, node: fx.Node) -> Any:
        (rows, *others), kwargs = plain_operands(frame, node)
        axis = frame.plan.layouts[node].rows
        assert axis is not None
        if not frame.is_single(node):
            return self._function(rows, *others, **kwargs)
        result: Tensor = self._function(rows.unsqueeze(axis), *others, **kwargs)
        return result.squeeze(axis)


def _overload(operator: str) -> Any:
    namespace, _, name = operator.partition("::")
    name, _, overload = name.partition(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), name), overload or "default")
    except (AttributeError, RuntimeError) as error:
        raise UsageError(
            f"PyTorch has no operator {operator!r}; define it with torch.library first"
        ) from error

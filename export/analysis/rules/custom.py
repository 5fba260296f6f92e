"""Rules that users register for their own operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from hybrid_deploy.errors import UsageError
from hybrid_deploy.export.analysis.rules.rule import operand_values, token_operand
from hybrid_deploy.export.plan.plan import DecodePlan, Layout
from hybrid_deploy.export.plan.row_executor import RowExecutor
from hybrid_deploy.export.trace.refusal import refuse

Function = TypeVar("Function", bound=Callable[..., Any])

_RULES: dict[str, CustomRule] = {}
_TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {}


def row_rule(
    operator: str, *, onnx: Callable[..., Any] | None = None
) -> Callable[[Function], Function]:
    """Returns a decorator that registers an operator as row-wise: it treats each token alone.

    The exporter can then compute the operator for new tokens only. The decorated function takes
    the operator's arguments and returns its result. Its first argument has the tokens on the same
    axis as in the model, but possibly fewer of them; the result must have them on that axis too.

        @row_rule("mylib::gated_norm")
        def gated_norm(rows, weight):  # rows: (batch, tokens, width)
            return torch.nn.functional.rms_norm(rows, weight.shape) * rows.sigmoid()

    Args:
        operator: name of the operator in PyTorch, `namespace::name` or
            `namespace::name.overload`.
        onnx: the onnxscript function that translates the operator. It is needed only if the
            decorated function calls the operator itself and torch.onnx has no translation.

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
    """Returns the rule that a user registered for a node's operator; None if there is none."""
    return _RULES.get(str(node.target))


def custom_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns the ONNX translations of users' operators, as torch.onnx.export takes them."""
    return dict(_TRANSLATIONS)


class CustomRule:
    """The rule of a user's row-wise operator.

    Args:
        function: computes the operator for any number of tokens.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source = token_operand(plan, node)
        other_token_operands = [
            n for n in node.all_input_nodes if n is not source and plan.depends_on_tokens(n)
        ]
        layout = plan.layouts[source]
        if other_token_operands or layout.keys is not None or layout.merged:
            raise refuse(node, "a row rule takes the tokens in its first operand, as one axis")
        if plan.token_axes(node) != (layout.rows,):
            raise refuse(node, "the result of a row rule must have the tokens on the same axis")
        return layout

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        (rows, *arguments), kwargs = operand_values(executor, node)
        axis = executor.plan.layouts[node].rows
        assert axis is not None
        if not executor.is_single(node):
            return self._function(rows, *arguments, **kwargs)
        result: Tensor = self._function(rows.unsqueeze(axis), *arguments, **kwargs)
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

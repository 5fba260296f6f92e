"""Rules for operators that treat each token alone: elementwise, linear, norms, reductions."""

from __future__ import annotations

from typing import Any

from torch import fx

from hybrid_deploy.export.analysis.key_test import hides_later_keys
from hybrid_deploy.export.analysis.rules.proven import ProvenRowWise
from hybrid_deploy.export.analysis.rules.rule import (
    call_operator,
    operand_values,
    row_and_key_axes,
    token_operand,
)
from hybrid_deploy.export.plan.cache_selection import select_state_cache
from hybrid_deploy.export.plan.plan import DecodePlan, Layout
from hybrid_deploy.export.plan.row_executor import RowExecutor
from hybrid_deploy.export.trace.capture import example_size
from hybrid_deploy.export.trace.refusal import NO_CAUSAL_MASK, extra_keys, refuse

READS_LATER_KEYS = (
    "along the keys this operator returns other values if the tokens after a row are left out: its "
    "operand has to hide them (zero for a sum, -inf for a maximum)"
)


class Elementwise:
    """Operators that compute each element from the operands' elements at the same index."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        axes = plan.token_axes(node)
        operands = [n for n in node.all_input_nodes if plan.depends_on_tokens(n)]
        layouts = [plan.layouts[n] for n in operands]
        merged = any(layout.merged for layout in layouts)
        if not axes:
            raise refuse(node, "the token axis is lost here")
        if len(axes) > 2:
            raise refuse(node, "more than two axes run along the tokens")
        if len(axes) == 1:
            with_tokens = [layout for layout in layouts if not layout.is_whole]
            has_only_keys = bool(with_tokens) and all(x.rows is None for x in with_tokens)
            return Layout(keys=axes[0]) if has_only_keys else Layout(rows=axes[0], merged=merged)
        rows, keys = axes[0] - plan.rank(node), axes[1] - plan.rank(node)
        for operand, layout in zip(operands, layouts, strict=True):
            rank = plan.rank(operand)
            if layout.rows is not None and layout.keys is None and layout.rows - rank == keys:
                select_state_cache(plan, node, operand)
            elif layout.rows is None and layout.keys is not None and layout.keys - rank == rows:
                raise refuse(node, "a value of all tokens so far is used along the new tokens")
        return Layout(rows=axes[0], keys=axes[1], merged=merged)

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        alignment = executor.alignment(node)
        args, kwargs = fx.map_arg(
            (node.args, node.kwargs),
            lambda operand: executor.aligned_value(node, operand, alignment),
        )
        return call_operator(node, args, kwargs)


class Dropout(Elementwise):
    """Dropout, which does nothing in eval mode."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        if node.args[2]:
            raise refuse(
                node, "this dropout is active in eval mode; give it training=self.training"
            )
        return super().bind(plan, node)


class RowWise:
    """Operators that treat each vector of the last axes alone: linear layers, norms.

    Args:
        trailing_argument: index of the argument that holds the shape of the last axes; None if
            the operator works on the last axis alone.
    """

    def __init__(self, trailing_argument: int | None = None) -> None:
        self._trailing = trailing_argument

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        token_operands = [n for n in node.all_input_nodes if plan.depends_on_tokens(n)]
        source = token_operand(plan, node)
        if token_operands != [source]:
            raise refuse(node, "the weights of this operator depend on tokens")
        layout = plan.layouts[source]
        shape_argument = None if self._trailing is None else node.args[self._trailing]
        trailing = 1 if shape_argument is None else len(shape_argument)  # type: ignore[arg-type]
        if any(
            axis is not None and axis >= plan.rank(source) - trailing
            for axis in row_and_key_axes(layout)
        ):
            raise refuse(node, "this operator mixes values along the token axis")
        return layout

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        return call_operator(node, *operand_values(executor, node))


class ChannelWise:
    """Operators on (batch, channels, tokens) that compute each token from its own channels.

    These are convolutions with a kernel of size one and batch normalization in eval mode. If the
    tokens are on another axis, the numerical test decides.
    """

    def __init__(self) -> None:
        self._elsewhere = ProvenRowWise()

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source = token_operand(plan, node)
        layout = plan.layouts[source]
        if plan.rank(source) != 3 or layout != Layout(rows=2):
            return self._elsewhere.bind(plan, node)
        if not self._keeps_tokens_apart(plan, node):
            raise refuse(node, "this operator mixes values along the token axis")
        return layout

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        if executor.plan.rank(node) != 3 or executor.plan.layouts[node] != Layout(rows=2):
            return self._elsewhere.run(executor, node)
        (rows, *arguments), kwargs = operand_values(executor, node)
        if not executor.is_single(node):
            return call_operator(node, (rows, *arguments), kwargs)
        result = call_operator(node, (rows.unsqueeze(2), *arguments), kwargs)
        if isinstance(result, tuple):  # native batch normalization: the value, then its statistics
            return (result[0].squeeze(2), *result[1:])
        return result.squeeze(2)

    def _keeps_tokens_apart(self, plan: DecodePlan, node: fx.Node) -> bool:
        name = str(node.target)
        if "batch_norm" in name:
            training = node.args[5] if name == "aten.batch_norm.default" else False
            return not training
        source, weight = node.args[:2]
        assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
        return plan.shape(weight)[2] == 1 and plan.shape(node)[2] == plan.shape(source)[2]


class LinearWithBiasFirst(RowWise):
    """The linear operator `addmm(bias, rows, weight)`."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        rows = node.args[1]
        weights = (node.args[0], node.args[2])
        if not isinstance(rows, fx.Node) or any(plan.depends_on_tokens(n) for n in weights):
            raise refuse(node, "the weights of this operator depend on tokens")
        return plan.layouts[rows]


class Reduction:
    """Operators that reduce or normalize along given axes, none of which is the row axis.

    Args:
        over_keys: whether a causal mask before the operator suffices along the key axis: for a
            softmax it does. Others, as a sum of exponentials, have to pass the test of
            key_test.py; a mean does not.
    """

    def __init__(self, *, over_keys: bool = False) -> None:
        self._over_keys = over_keys

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source = token_operand(plan, node)
        layout, reduced = plan.layouts[source], self._axes(plan, node)
        if layout.rows in reduced:
            raise refuse(node, "this operator reduces or normalises over the token axis")
        if plan.batch_axis(source) in reduced:
            raise refuse(node, "this operator mixes the sequences of a batch")
        if layout.keys is not None and layout.keys in reduced:
            is_masked = self._over_keys and source in plan.causally_masked
            if not is_masked and not hides_later_keys(plan, node, source):
                raise refuse(node, self._sight_of_later_keys(plan, source, layout.keys))
        if plan.rank(node) == plan.rank(source):
            return layout
        axes = [
            None if axis is None else axis - sum(r < axis for r in reduced)
            for axis in row_and_key_axes(layout)
        ]
        return Layout(rows=axes[0], keys=axes[1], merged=layout.merged)

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        source = token_operand(executor.plan, node)
        args, kwargs = operand_values(executor, node)
        single = executor.is_single(node)
        axes = [
            executor.axis(source, axis, single=single) for axis in self._axes(executor.plan, node)
        ]
        index, original = _dim_argument(node)
        dim: Any = axes[0] if isinstance(original, int) else axes
        if "dim" in kwargs or len(args) <= index:
            kwargs["dim"] = dim
        else:
            args = (*args[:index], dim, *args[index + 1 :])
        return call_operator(node, args, kwargs)

    def _sight_of_later_keys(self, plan: DecodePlan, source: fx.Node, keys: int) -> str:
        """Returns why an operator over the keys is refused."""
        if not self._over_keys:
            return READS_LATER_KEYS
        rows = plan.layouts[source].rows
        if rows is None:
            return NO_CAUSAL_MASK
        row_count, key_count = (example_size(plan.shape(source)[axis]) for axis in (rows, keys))
        return NO_CAUSAL_MASK if row_count == key_count else extra_keys(key_count, row_count)

    def _axes(self, plan: DecodePlan, node: fx.Node) -> list[int]:
        rank = plan.rank(token_operand(plan, node))
        _, dim = _dim_argument(node)
        if dim is None or dim == []:
            return list(range(rank))
        return [axis % rank for axis in ([dim] if isinstance(dim, int) else dim)]


def _dim_argument(node: fx.Node) -> tuple[int, Any]:
    """Returns the place of the argument `dim` in an operator's schema, and its value, if any."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    index = names.index("dim")
    return index, node.kwargs.get("dim", node.args[index] if len(node.args) > index else None)


class Embedding:
    """The look-up of each token's row in a constant table."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        if plan.depends_on_tokens(node.args[0]):
            raise refuse(node, "the embedding table depends on tokens")
        return plan.layouts[node.args[1]]  # type: ignore[index]

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        return call_operator(node, *operand_values(executor, node))


class TupleItem:
    """One item of a tuple that an operator returns."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        return plan.layouts[node.args[0]]  # type: ignore[index]

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        source, index = node.args[:2]
        return executor.token_value(source, single=executor.is_single(node))[index]  # type: ignore[arg-type]

"""Rules for operators that treat tokens one by one: element-wise, linear, norms, reductions."""

from __future__ import annotations

from typing import Any

from torch import fx

from hybrid_deploy.export.analysis.rule import axes, call, first_tensor, plain_operands
from hybrid_deploy.export.plan.cache_selection import select_state_cache
from hybrid_deploy.export.plan.plan import DecodePlan, Layout
from hybrid_deploy.export.plan.row_executor import RowExecutor
from hybrid_deploy.export.trace.refusal import NO_CAUSAL_MASK, refuse


class Elementwise:
    """Operators that compute every element from the elements at the same place."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        rank, axes = plan.rank(node), plan.token_axes(node)
        operands = [n for n in node.all_input_nodes if plan.depends_on_tokens(n)]
        layouts = [plan.layouts[n] for n in operands]
        merged = any(layout.merged for layout in layouts)
        if not axes:
            raise refuse(node, "the token axis is lost here")
        if len(axes) > 2:
            raise refuse(node, "more than two axes run along the tokens")
        if len(axes) == 1:
            only_keys = bool(layouts) and all(layout.rows is None for layout in layouts)
            return Layout(keys=axes[0]) if only_keys else Layout(rows=axes[0], merged=merged)
        rows, keys = axes[0] - rank, axes[1] - rank
        for operand, layout in zip(operands, layouts, strict=True):
            own = plan.rank(operand)
            if layout.rows is not None and layout.keys is None and layout.rows - own == keys:
                select_state_cache(plan, node, operand)
            elif layout.rows is None and layout.keys is not None and layout.keys - own == rows:
                raise refuse(node, "a value of all tokens so far is used along the new tokens")
        return Layout(rows=axes[0], keys=axes[1], merged=merged)

    def run(self, frame: RowExecutor, node: fx.Node) -> Any:
        into = frame.alignment(node)
        args, kwargs = fx.map_arg(
            (node.args, node.kwargs), lambda operand: frame.aligned(node, operand, into)
        )
        return call(node, args, kwargs)


class Dropout(Elementwise):
    """Dropout, which a model in eval mode leaves out."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        if node.args[2]:
            raise refuse(
                node, "this dropout is active in eval mode; give it training=self.training"
            )
        return super().bind(plan, node)


class RowWise:
    """Operators that treat every vector along the last axes alone: linear layers, norms."""

    def __init__(self, trailing_argument: int | None = None) -> None:
        self._trailing = trailing_argument

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        tokens = [n for n in node.all_input_nodes if plan.depends_on_tokens(n)]
        source = first_tensor(plan, node)
        if tokens != [source]:
            raise refuse(node, "the weights of this operator depend on tokens")
        layout = plan.layouts[source]
        shape_argument = None if self._trailing is None else node.args[self._trailing]
        trailing = 1 if shape_argument is None else len(shape_argument)  # type: ignore[arg-type]
        if any(axis is not None and axis >= plan.rank(source) - trailing for axis in axes(layout)):
            raise refuse(node, "this operator mixes values along the token axis")
        return layout

    def run(self, frame: RowExecutor, node: fx.Node) -> Any:
        return call(node, *plain_operands(frame, node))


class ChannelWise:
    """Operators on (batch, channels, tokens) that compute every token from its own channels.

    Those are convolutions with a kernel of one, and batch normalisation in eval mode.
    """

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source = first_tensor(plan, node)
        layout = plan.layouts[source]
        if plan.rank(source) != 3 or layout != Layout(rows=2) or not self._keeps_apart(plan, node):
            raise refuse(node, "this operator mixes values along the token axis")
        return layout

    def run(self, frame: RowExecutor, node: fx.Node) -> Any:
        (rows, *others), kwargs = plain_operands(frame, node)
        if not frame.is_single(node):
            return call(node, (rows, *others), kwargs)
        result = call(node, (rows.unsqueeze(2), *others), kwargs)
        if isinstance(result, tuple):  # of which the first is the value
            return (result[0].squeeze(2), *result[1:])
        return result.squeeze(2)

    def _keeps_apart(self, plan: DecodePlan, node: fx.Node) -> bool:
        name = str(node.target)
        if "batch_norm" in name:
            training = node.args[5] if name == "aten.batch_norm.default" else False
            return not training
        source, weight = node.args[:2]
        assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
        return plan.shape(weight)[2] == 1 and plan.shape(node)[2] == plan.shape(source)[2]


class LinearWithBiasFirst(RowWise):
    """`addmm(bias, rows, weight)`."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        rows = node.args[1]
        others = (node.args[0], node.args[2])
        if not isinstance(rows, fx.Node) or any(plan.depends_on_tokens(n) for n in others):
            raise refuse(node, "the weights of this operator depend on tokens")
        return plan.layouts[rows]


class Reduction:
    """Operators that reduce or normalise along given axes, and keep the tokens apart."""

    def __init__(self, *, over_keys: bool = False) -> None:
        self._over_keys = over_keys

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        source = first_tensor(plan, node)
        layout, reduced = plan.layouts[source], self._axes(plan, node)
        if layout.rows in reduced:
            raise refuse(node, "this operator reduces or normalises over the token axis")
        if plan.batch_axis(source) in reduced:
            raise refuse(node, "this operator mixes the sequences of a batch")
        if layout.keys in reduced and not (self._over_keys and source in plan.masked):
            raise refuse(node, NO_CAUSAL_MASK)
        if plan.rank(node) == plan.rank(source):
            return layout
        shift = [
            None if axis is None else axis - sum(r < axis for r in reduced) for axis in axes(layout)
        ]
        return Layout(rows=shift[0], keys=shift[1], merged=layout.merged)

    def run(self, frame: RowExecutor, node: fx.Node) -> Any:
        source = first_tensor(frame.plan, node)
        args, kwargs = plain_operands(frame, node)
        single = frame.is_single(node)
        moved = [frame.axis(source, axis, single=single) for axis in self._axes(frame.plan, node)]
        given = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        dim: Any = moved[0] if isinstance(given, int) else moved
        if "dim" in kwargs:
            kwargs["dim"] = dim
        else:
            args = (args[0], dim, *args[2:])
        return call(node, args, kwargs)

    def _axes(self, plan: DecodePlan, node: fx.Node) -> list[int]:
        rank = plan.rank(first_tensor(plan, node))
        given: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        if given is None:
            return list(range(rank))
        return [axis % rank for axis in ([given] if isinstance(given, int) else given)]


class Embedding:
    """A table looked up by token."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        if plan.depends_on_tokens(node.args[0]):
            raise refuse(node, "the embedding table depends on tokens")
        return plan.layouts[node.args[1]]  # type: ignore[index]

    def run(self, frame: RowExecutor, node: fx.Node) -> Any:
        return call(node, *plain_operands(frame, node))


class Item:
    """One of several results of an operator."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        return plan.layouts[node.args[0]]  # type: ignore[index]

    def run(self, frame: RowExecutor, node: fx.Node) -> Any:
        source, index = node.args[:2]
        return frame.raw(source, single=frame.is_single(node))[index]  # type: ignore[arg-type]


class Refused:
    """Operators that nothing is known of."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        raise refuse(node, "this operator is not known to treat tokens one by one")

    def run(self, frame: RowExecutor, node: fx.Node) -> Any:
        raise AssertionError("a refused operator is never run")

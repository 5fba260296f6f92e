"""The step of a beam search, made from the step graph: beams meet their memory all at once.

In a step every sequence has a memory of its own. Beams of one input have the same, so a graph that
takes (inputs, ...) of memory beside (inputs * beams, ...) of everything else reads it once for all.
Where the row of a sequence meets memory, the beams of an input become rows of one matrix: queries
(inputs * beams, heads, 1, width) become (inputs, heads, beams, width), keys and values stay as they
are, and the result becomes (inputs * beams, heads, 1, width) again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from enum import Enum

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from hybrid_deploy.contract import BATCH_DIM, INPUTS_DIM, TOKEN, GraphRole, is_memory
from hybrid_deploy.onnx_graphs.beam_axis import BeamAxis, NotFoldableError, rank_of

_ELEMENTWISE = frozenset(
    {"Abs", "Add", "And", "Cast", "Clip", "Div", "Equal", "Erf", "Exp", "Greater", "Identity"}
    | {"IsNaN", "Less", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "Sigmoid", "Sqrt", "Sub"}
    | {"Tanh", "Where"}
)
_RESHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze"})
_ROWS, _COLUMNS, _RANK = -2, -1, 4
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


class _Kind(Enum):
    """What the first axis of a value counts."""

    FIXED = "nothing that varies with the batch"
    SEQUENCES = "sequences"
    INPUTS = "inputs: the value was made of memory alone"
    FOLDED = "sequences, and there is a form of the value whose beams have an axis"


def add_beam_step(
    graphs: MutableMapping[GraphRole, ir.Model], step: ir.Model | None = None
) -> None:
    """Adds the step of beam searches to the graphs of a variant, if there is one.

    Args:
        graphs: of the variant.
        step: what to make it of; None takes the step.
    """
    found = beam_step(step or graphs[GraphRole.STEP])
    if found is not None:
        graphs[GraphRole.BEAM_STEP] = found


def beam_step(step: ir.Model) -> ir.Model | None:
    """Returns the step graph whose memory has a batch of its own, `inputs`.

    Args:
        step: of any opset and precision; it is left as it is, and shares its weights.

    Returns:
        The graph; None where the batch is fixed, no memory is attended to, or memory is used in
        another way than by operators whose rows are independent of each other.
    """
    if not _is_resizable(step.graph):
        return None
    model = step.clone()
    try:
        met = _Rewriting(model.graph).run()
    except NotFoldableError:
        return None
    if not met:
        return None
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)
    model.graph.name = "beam_step"
    return model


def _is_resizable(graph: ir.Graph) -> bool:
    token = next((value for value in graph.inputs if value.name == TOKEN), None)
    return token is not None and _has_batch(token)


def _has_batch(value: ir.Value) -> bool:
    if value.shape is None or not value.shape.rank():
        return False
    size = value.shape[0]
    return isinstance(size, ir.SymbolicDim) and size.value == BATCH_DIM


class _Rewriting:
    """One pass over a graph, from its inputs to its outputs."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._kinds: dict[ir.Value, _Kind] = {}
        memory = []
        for value in graph.inputs:
            batched, from_encoder = _has_batch(value), is_memory(str(value.name))
            self._kinds[value] = _Kind.SEQUENCES if batched else _Kind.FIXED
            if batched and from_encoder:
                memory.append(value)
                self._kinds[value] = _Kind.INPUTS
                _count_inputs(value)
        self._axis = BeamAxis(graph, memory[0]) if memory else None

    def run(self) -> bool:
        """Rewrites all nodes; tells whether a sequence meets memory anywhere.

        Raises:
            NotFoldableError: they meet in a way that has no such form.
        """
        if self._axis is None:
            return False
        for node in list(self._graph):
            self._visit(node, self._axis)
        for index, value in enumerate(self._graph.outputs):
            if self._kind(value) is _Kind.INPUTS:
                raise NotFoldableError
            if self._kind(value) is _Kind.FOLDED:
                whole = self._axis.unfolded(value)
                name, value.name = value.name, f"{value.name}_folded"
                whole.name = name
                self._graph.outputs[index] = whole
        return self._axis.used

    def _visit(self, node: ir.Node, axis: BeamAxis) -> None:
        if any(attribute.type in _GRAPHS for attribute in node.attributes.values()):
            raise NotFoldableError
        kinds = self._kinds_of_inputs(node)
        mixed = _Kind.FOLDED in kinds or kinds >= {_Kind.SEQUENCES, _Kind.INPUTS}
        if mixed and self._fold(node, axis):
            kind = _Kind.FOLDED
        elif _Kind.INPUTS in kinds:
            if mixed:
                raise NotFoldableError
            kind = _Kind.INPUTS
        elif _Kind.FOLDED in kinds:
            self._unfold_inputs(node, axis)
            kind = _Kind.SEQUENCES
        else:
            kind = _Kind.SEQUENCES if _Kind.SEQUENCES in kinds else _Kind.FIXED
        for output in node.outputs:
            self._kinds[output] = kind
            if kind is _Kind.INPUTS:
                _count_inputs(output)

    def _kind(self, value: ir.Value | None) -> _Kind:
        return _Kind.FIXED if value is None else self._kinds.get(value, _Kind.FIXED)

    def _kinds_of_inputs(self, node: ir.Node) -> set[_Kind]:
        if node.op_type == "Shape" and node.attributes.get_int("start", 0) > 0:
            return {_Kind.FIXED}  # sizes behind the first are the same for all
        if node.op_type in _RESHAPING and self._kind(node.inputs[0]) is _Kind.FOLDED:
            return {_Kind.FOLDED}  # where it is folded, the sizes are known
        return {self._kind(value) for value in node.inputs}

    def _unfold_inputs(self, node: ir.Node, axis: BeamAxis) -> None:
        if node.op_type in _RESHAPING and axis.unfold_into(node):
            self._kinds[axis.unfolded(node.outputs[0])] = _Kind.SEQUENCES
            return
        for index, value in enumerate(node.inputs):
            if value is not None and self._kind(value) is _Kind.FOLDED:
                node.replace_input_with(index, axis.unfolded(value))

    def _fold(self, node: ir.Node, axis: BeamAxis) -> bool:
        """Adds the node that computes the folded form of what a node gives, if there is one."""
        if node.domain or len(node.outputs) != 1:
            return False
        if node.op_type in _RESHAPING:
            return self._kind(node.inputs[0]) is _Kind.FOLDED and axis.move(node)
        fold = _FOLDS.get(node.op_type)
        return fold is not None and fold(self, node, axis)

    def _fold_attention(self, node: ir.Node, axis: BeamAxis) -> bool:
        query, key, value, *more = node.inputs
        mask = more[0] if more else None
        plain = not any(more[1:]) and not node.attributes.get_int("is_causal", 0)
        memory = self._kind(key) is self._kind(value) is _Kind.INPUTS
        if query is None or not plain or not memory or rank_of(query) != _RANK:
            return False
        rows = axis.fold(query, _ROWS)
        inputs = [rows, key, value]
        if mask is not None:
            own = self._kind(mask) in (_Kind.SEQUENCES, _Kind.FOLDED)
            inputs.append(axis.fold(mask, _ROWS) if own else axis.with_all_rows(mask, rows))
        axis.add(node, inputs, _RANK + _ROWS)
        return True

    def _fold_product(self, node: ir.Node, axis: BeamAxis) -> bool:
        left, right = node.inputs
        if left is None or right is None or rank_of(left) != rank_of(right):
            return False
        if self._kind(right) is _Kind.INPUTS:
            axis.add(node, [axis.fold(left, _ROWS), right], rank_of(left) + _ROWS)
        elif self._kind(left) is _Kind.INPUTS:
            axis.add(node, [left, axis.fold(right, _COLUMNS)], rank_of(right) + _COLUMNS)
        else:
            return False
        return True

    def _fold_softmax(self, node: ir.Node, axis: BeamAxis) -> bool:
        value = node.inputs[0]
        rank, along = rank_of(value), node.attributes.get_int("axis", -1)
        assert value is not None, "its rank was asked for"
        place = axis.place(value)
        if along % rank in (0, place):
            return False
        axis.add(node, [axis.fold(value, place - rank)], place)
        return True

    def _fold_elementwise(self, node: ir.Node, axis: BeamAxis) -> bool:
        """Keeps beams apart where everything else is the same for them."""
        kinds, rank = [self._kind(value) for value in node.inputs], rank_of(node.outputs[0])
        if _Kind.INPUTS not in kinds and _Kind.SEQUENCES in kinds:
            return False  # such as what a result is added to: it is unfolded for that
        places = [axis.place(v) for v in node.inputs if v and self._kind(v) is _Kind.FOLDED]
        place = places[0] if places else rank + _ROWS
        inputs: list[ir.Value | None] = []
        for value in node.inputs:
            if value is not None and self._kind(value) in (_Kind.SEQUENCES, _Kind.FOLDED):
                if rank_of(value) != rank:
                    return False
                inputs.append(axis.fold(value, place - rank))
            elif value is None or self._is_same_for_beams(value, place, rank):
                inputs.append(value)
            else:
                return False
        axis.add(node, inputs, place)
        return True

    def _is_same_for_beams(self, value: ir.Value, place: int, rank: int) -> bool:
        """Returns whether a value has no more than one number along the axis of the beams."""
        own = rank_of(value)
        if self._kind(value) is _Kind.INPUTS and own != rank:
            return False
        assert value.shape is not None, "its rank was asked for"
        return own < rank - place or value.shape[place - rank] == 1


_FOLDS: Mapping[str, Callable[[_Rewriting, ir.Node, BeamAxis], bool]] = {
    "Attention": _Rewriting._fold_attention,
    "LogSoftmax": _Rewriting._fold_softmax,
    "MatMul": _Rewriting._fold_product,
    "Softmax": _Rewriting._fold_softmax,
    **dict.fromkeys(_ELEMENTWISE, _Rewriting._fold_elementwise),
}


def _count_inputs(value: ir.Value) -> None:
    """Says that the first axis of what memory is made of counts inputs."""
    if value.shape is not None and _has_batch(value):
        value.shape = ir.Shape([INPUTS_DIM, *list(value.shape)[1:]])

"""The beam step, made from the step graph: all beams of an input read the same memory.

In the step graph every sequence has its own memory. In the beam step the memory tensors have one
entry for each input, and batch = inputs * beams. Where the row of a sequence meets memory, the
beams of an input become the rows of one matrix, so that memory is read once for all of them.

before  query (batch, heads, 1, width)      key, value (batch, heads, memory, width)
        Attention(query, key, value)                    -> (batch, heads, 1, width)

after   query (batch, heads, 1, width)      key, value (inputs, heads, memory, width)
        Reshape   query                                 -> (inputs, beams, heads, width)
        Transpose                                       -> (inputs, heads, beams, width)
        Attention(query, key, value)                    -> (inputs, heads, beams, width)
        Transpose                                       -> (inputs, beams, heads, width)
        Reshape                                         -> (batch, heads, 1, width)

Attention that is written out as MatMul, Softmax and element-wise operators is rewritten likewise:
values stay folded from the first product with memory to the last (see `beam_axis`).
"""

from __future__ import annotations

import re
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
_SUBGRAPH_TYPES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


class _Kind(Enum):
    """What the first axis of a value counts."""

    FIXED = "nothing: the value does not depend on the batch"
    SEQUENCES = "sequences"
    INPUTS = "inputs: the value is computed from memory alone"
    FOLDED = "sequences; the value also has a folded form, whose first axis counts inputs"


def add_beam_step(
    graphs: MutableMapping[GraphRole, ir.Model], step: ir.Model | None = None
) -> None:
    """Adds the beam step to the graphs of a variant, if `beam_step` returns one.

    Args:
        graphs: graphs of the variant; the beam step is added to them.
        step: graph that the beam step is made from; None takes the step of `graphs`.
    """
    model = beam_step(step or graphs[GraphRole.STEP])
    if model is not None:
        graphs[GraphRole.BEAM_STEP] = model


def beam_step(step: ir.Model) -> ir.Model | None:
    """Returns the beam step of a step graph: the first size of its memory tensors is `inputs`.

    Args:
        step: graph of any opset and precision; it stays unchanged.

    Returns:
        A graph that shares the step's weights. None if the batch size is fixed, if no operator
        combines memory with a sequence, or if one does in a way that cannot be folded.
    """
    if not _has_symbolic_batch(step.graph):
        return None
    model = step.clone()
    try:
        is_rewritten = _Rewriting(model.graph).run()
    except NotFoldableError:
        return None
    if not is_rewritten:
        return None
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)
    model.graph.name = "beam_step"
    return model


def _has_symbolic_batch(graph: ir.Graph) -> bool:
    token = next((value for value in graph.inputs if value.name == TOKEN), None)
    return token is not None and _has_batch(token)


def _has_batch(value: ir.Value) -> bool:
    """Returns whether the first size of a value is `batch`."""
    if value.shape is None or not value.shape.rank():
        return False
    size = value.shape[0]
    return isinstance(size, ir.SymbolicDim) and size.value == BATCH_DIM


class _Rewriting:
    """One pass over the nodes of a graph, from its inputs to its outputs."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._kinds: dict[ir.Value, _Kind] = {}
        memory = []
        for value in graph.inputs:
            has_batch = _has_batch(value)
            self._kinds[value] = _Kind.SEQUENCES if has_batch else _Kind.FIXED
            _check_one_row_each(value)
            if has_batch and is_memory(str(value.name)):
                memory.append(value)
                self._kinds[value] = _Kind.INPUTS
                _rename_batch_to_inputs(value)
        self._beams = BeamAxis(graph, memory[0]) if memory else None

    def run(self) -> bool:
        """Rewrites all nodes, and returns whether any node combines memory with a sequence.

        Raises:
            NotFoldableError: a node combines them in a way that cannot be folded.
        """
        if self._beams is None:
            return False
        for node in list(self._graph):
            self._visit(node, self._beams)
        for index, value in enumerate(self._graph.outputs):
            if self._kind(value) is _Kind.INPUTS:
                raise NotFoldableError
            if self._kind(value) is _Kind.FOLDED:
                unfolded = self._beams.unfold(value)
                name, value.name = value.name, f"{value.name}_folded"
                unfolded.name = name
                self._graph.outputs[index] = unfolded
        return self._beams.used

    def _visit(self, node: ir.Node, beams: BeamAxis) -> None:
        if any(attribute.type in _SUBGRAPH_TYPES for attribute in node.attributes.values()):
            raise NotFoldableError
        kinds = self._kinds_of_inputs(node)
        is_mixed = _Kind.FOLDED in kinds or kinds >= {_Kind.SEQUENCES, _Kind.INPUTS}
        if is_mixed and self._fold(node, beams):
            kind = _Kind.FOLDED
        elif _Kind.INPUTS in kinds:
            if is_mixed:
                raise NotFoldableError
            kind = _Kind.INPUTS
        elif _Kind.FOLDED in kinds:
            self._unfold_inputs(node, beams)
            kind = _Kind.SEQUENCES
        else:
            kind = _Kind.SEQUENCES if _Kind.SEQUENCES in kinds else _Kind.FIXED
        for output in node.outputs:
            self._kinds[output] = kind
            if kind is _Kind.INPUTS:
                _check_one_row_each(output)
                _rename_batch_to_inputs(output)

    def _kind(self, value: ir.Value | None) -> _Kind:
        return _Kind.FIXED if value is None else self._kinds.get(value, _Kind.FIXED)

    def _kinds_of_inputs(self, node: ir.Node) -> set[_Kind]:
        if node.op_type == "Shape" and node.attributes.get_int("start", 0) > 0:
            return {_Kind.FIXED}  # only the first size depends on the batch
        if node.op_type in _RESHAPING and self._kind(node.inputs[0]) is _Kind.FOLDED:
            return {_Kind.FOLDED}  # the second input is a shape; folding computes its own
        return {self._kind(value) for value in node.inputs}

    def _unfold_inputs(self, node: ir.Node, beams: BeamAxis) -> None:
        if node.op_type in _RESHAPING and beams.unfold_reshape(node):
            self._kinds[beams.unfold(node.outputs[0])] = _Kind.SEQUENCES
            return
        for index, value in enumerate(node.inputs):
            if value is not None and self._kind(value) is _Kind.FOLDED:
                node.replace_input_with(index, beams.unfold(value))

    def _fold(self, node: ir.Node, beams: BeamAxis) -> bool:
        """Folds the result of a node if it can, and returns whether it did."""
        if node.domain or len(node.outputs) != 1:
            return False
        if node.op_type in _RESHAPING:
            return self._kind(node.inputs[0]) is _Kind.FOLDED and beams.fold_reshape(node)
        fold = _FOLDS.get(node.op_type)
        return fold is not None and fold(self, node, beams)

    def _fold_attention(self, node: ir.Node, beams: BeamAxis) -> bool:
        query, key, value, *optional = node.inputs
        mask = optional[0] if optional else None
        is_plain = not any(optional[1:]) and not node.attributes.get_int("is_causal", 0)
        reads_memory = self._kind(key) is self._kind(value) is _Kind.INPUTS
        if query is None or not is_plain or not reads_memory or rank_of(query) != _RANK:
            return False
        rows = beams.fold(query, _ROWS)
        inputs = [rows, key, value]
        if mask is not None:
            differs = self._kind(mask) in (_Kind.SEQUENCES, _Kind.FOLDED)
            inputs.append(beams.fold(mask, _ROWS) if differs else beams.expand_mask(mask, rows))
        beams.add_folded(node, inputs, _RANK + _ROWS)
        return True

    def _fold_product(self, node: ir.Node, beams: BeamAxis) -> bool:
        left, right = node.inputs
        if left is None or right is None or rank_of(left) != rank_of(right):
            return False
        if self._kind(right) is _Kind.INPUTS:
            beams.add_folded(node, [beams.fold(left, _ROWS), right], rank_of(left) + _ROWS)
        elif self._kind(left) is _Kind.INPUTS:
            beams.add_folded(node, [left, beams.fold(right, _COLUMNS)], rank_of(right) + _COLUMNS)
        else:
            return False
        return True

    def _fold_softmax(self, node: ir.Node, beams: BeamAxis) -> bool:
        value = node.inputs[0]
        rank, softmax_axis = rank_of(value), node.attributes.get_int("axis", -1)
        assert value is not None, "rank_of raises an error for None"
        beam_axis = beams.axis_of(value)
        if softmax_axis % rank in (0, beam_axis):
            return False
        beams.add_folded(node, [beams.fold(value, beam_axis - rank)], beam_axis)
        return True

    def _fold_elementwise(self, node: ir.Node, beams: BeamAxis) -> bool:
        """Folds an element-wise node; inputs that do not differ between beams are broadcast."""
        kinds, rank = [self._kind(value) for value in node.inputs], rank_of(node.outputs[0])
        if _Kind.INPUTS not in kinds and _Kind.SEQUENCES in kinds:
            return False  # a residual sum, for example: its folded input is unfolded
        beam_axes = [beams.axis_of(v) for v in node.inputs if v and self._kind(v) is _Kind.FOLDED]
        beam_axis = beam_axes[0] if beam_axes else rank + _ROWS
        inputs: list[ir.Value | None] = []
        for value in node.inputs:
            if value is not None and self._kind(value) in (_Kind.SEQUENCES, _Kind.FOLDED):
                if rank_of(value) != rank:
                    return False
                inputs.append(beams.fold(value, beam_axis - rank))
            elif value is None or self._is_same_for_beams(value, beam_axis, rank):
                inputs.append(value)
            else:
                return False
        beams.add_folded(node, inputs, beam_axis)
        return True

    def _is_same_for_beams(self, value: ir.Value, beam_axis: int, rank: int) -> bool:
        """Returns whether a value is broadcast along the beam axis of a result with `rank` axes."""
        own_rank = rank_of(value)
        if self._kind(value) is _Kind.INPUTS and own_rank != rank:
            return False
        assert value.shape is not None, "rank_of was called before"
        return own_rank < rank - beam_axis or value.shape[beam_axis - rank] == 1


_FOLDS: Mapping[str, Callable[[_Rewriting, ir.Node, BeamAxis], bool]] = {
    "Attention": _Rewriting._fold_attention,
    "LogSoftmax": _Rewriting._fold_softmax,
    "MatMul": _Rewriting._fold_product,
    "Softmax": _Rewriting._fold_softmax,
    **dict.fromkeys(_ELEMENTWISE, _Rewriting._fold_elementwise),
}


def _check_one_row_each(value: ir.Value) -> None:
    """Checks that a value's first axis counts sequences if any axis does, not heads of them.

    Raises:
        NotFoldableError: another axis has the batch, or more of it than the batch.
    """
    sizes = [str(size) for size in value.shape or ()]
    if any(BATCH_DIM in re.findall(r"\w+", size) for size in sizes[_has_batch(value) :]):
        raise NotFoldableError


def _rename_batch_to_inputs(value: ir.Value) -> None:
    """Renames the first dimension of a value that is computed from memory alone to `inputs`."""
    if value.shape is not None and _has_batch(value):
        value.shape = ir.Shape([INPUTS_DIM, *list(value.shape)[1:]])

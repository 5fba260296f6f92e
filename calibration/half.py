"""Float32 graphs to float16, so that not one float32 product is left.

The caller sees two float32 tensors still: the encoder's inputs and the logits, each behind a Cast
inside the graph. Memory and caches become float16.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hybrid_deploy.calibration.half_range import half_array, uses_of
from hybrid_deploy.calibration.transpose import move_transposes_behind_products
from hybrid_deploy.contract import LOGITS, GraphRole

_DTYPE_ATTRIBUTES = {"Cast": "to", "EyeLike": "dtype"}
# Operators that know no float16: the indexes of the inputs that stay float32, and whether the
# outputs do.
_FLOAT32_INPUTS: dict[str, tuple[int, ...]] = {"Range": (0, 1, 2), "Resize": (1, 2)}
_FLOAT32_OUTPUTS = frozenset({"Range"})


def convert_to_half(model: ir.Model, role: GraphRole) -> None:
    """Rewrites a graph in place.

    Raises:
        CalibrationError: a weight does not fit float16, or is not a number.
    """
    move_transposes_behind_products(model)
    kept = _float32_constants(model.graph)
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.dtype is ir.DataType.FLOAT and value not in kept:
                tensor = value.const_value
                assert tensor is not None, f"initializer {value.name} has no value"
                half = half_array(str(value.name), tensor.numpy(), uses_of(value))
                value.const_value = ir.tensor(half, name=value.name)
                value.dtype = ir.DataType.FLOAT16
    nodes = list(model.graph.all_nodes())
    for node in nodes:
        _convert_attributes(node)
    for value in (*model.graph.inputs, *(out for node in nodes for out in node.outputs)):
        if value.dtype is ir.DataType.FLOAT:
            value.dtype = ir.DataType.FLOAT16
    for node in nodes:
        _guard_float32_operator(node, kept)
    _keep_float32_border(model.graph, role)


def _float32_constants(graph: ir.Graph) -> set[ir.Value]:
    """Finds the constants that only operators without float16 take."""
    return {
        value
        for value in graph.initializers.values()
        if (uses := value.uses())
        and all(index in _FLOAT32_INPUTS.get(node.op_type, ()) for node, index in uses)
    }


def _convert_attributes(node: ir.Node) -> None:
    name = f"{node.op_type} {node.name}"
    key = _DTYPE_ATTRIBUTES.get(node.op_type, "")
    if node.attributes.get_int(key, ir.DataType.UNDEFINED) == ir.DataType.FLOAT:
        node.attributes[key] = ir.AttrInt64(key, ir.DataType.FLOAT16)
    if node.op_type == "Constant":
        _convert_constant(node, name)
    elif node.op_type == "ConstantOfShape":
        array = np.zeros(1, np.float32)
        if "value" in node.attributes:
            array = node.attributes["value"].as_tensor().numpy()
        if array.dtype == np.float32:
            half = half_array(name, array, uses_of(node.outputs[0]))
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(half))


def _convert_constant(node: ir.Node, name: str) -> None:
    for key in ("value", "value_float", "value_floats"):
        if key not in node.attributes:
            continue
        given = node.attributes[key]
        array = given.as_tensor().numpy() if key == "value" else np.array(given.value, np.float32)
        if array.dtype == np.float32:
            del node.attributes[key]
            half = ir.tensor(half_array(name, array, uses_of(node.outputs[0])))
            node.attributes["value"] = ir.AttrTensor("value", half)


def _guard_float32_operator(node: ir.Node, kept: set[ir.Value]) -> None:
    """Puts Casts around an operator that has no float16 form."""
    for index in _FLOAT32_INPUTS.get(node.op_type, ()):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and value not in kept and value.dtype is ir.DataType.FLOAT16:
            node.replace_input_with(index, _cast_before(node, value, ir.DataType.FLOAT))
    if node.op_type in _FLOAT32_OUTPUTS and node.outputs[0].dtype is ir.DataType.FLOAT16:
        _cast_after(node, node.outputs[0], ir.DataType.FLOAT16)
        node.outputs[0].dtype = ir.DataType.FLOAT


def _keep_float32_border(graph: ir.Graph, role: GraphRole) -> None:
    if role is GraphRole.ENCODER:
        for value in graph.inputs:
            if value.dtype is ir.DataType.FLOAT16:
                value.dtype = ir.DataType.FLOAT
                _cast_input(graph, value)
        return
    index, logits = next((i, v) for i, v in enumerate(graph.outputs) if v.name == LOGITS)
    node = logits.producer()
    assert node is not None, "logits are computed"
    logits.name = f"{LOGITS}_half"
    cast = ir.node("Cast", [logits], {"to": ir.DataType.FLOAT}, name="cast_logits")
    _describe(cast.outputs[0], LOGITS, logits, ir.DataType.FLOAT)
    graph.append(cast)
    graph.outputs[index] = cast.outputs[0]


def _cast_input(graph: ir.Graph, value: ir.Value) -> None:
    first = next(iter(graph))
    users = [(node, index) for node, index in value.uses()]
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT16}, name=f"cast_{value.name}")
    _describe(cast.outputs[0], f"{value.name}_half", value, ir.DataType.FLOAT16)
    graph.insert_before(first, cast)
    for node, index in users:
        node.replace_input_with(index, cast.outputs[0])


def _cast_before(node: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    name = f"{value.name}_for_{node.outputs[0].name}"
    cast = ir.node("Cast", [value], {"to": dtype}, name=f"cast_{name}")
    _describe(cast.outputs[0], name, value, dtype)
    _home(node).insert_before(node, cast)
    return cast.outputs[0]


def _cast_after(node: ir.Node, value: ir.Value, dtype: ir.DataType) -> None:
    users = [(user, index) for user, index in value.uses()]
    cast = ir.node("Cast", [value], {"to": dtype}, name=f"cast_{value.name}")
    _describe(cast.outputs[0], f"{value.name}_half", value, dtype)
    _home(node).insert_after(node, cast)
    for user, index in users:
        user.replace_input_with(index, cast.outputs[0])


def _describe(new: ir.Value, name: str, like: ir.Value, dtype: ir.DataType) -> None:
    new.name, new.shape, new.dtype = name, like.shape, dtype


def _home(node: ir.Node) -> ir.Graph:
    graph = node.graph
    assert isinstance(graph, ir.Graph), "a node that is rewritten belongs to a graph"
    return graph

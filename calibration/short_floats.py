"""Float32 graphs to float16 or bfloat16, so that not one float32 product is left.

The caller sees two float32 tensors still: the encoder's inputs and what the heads give, each behind
a Cast inside the graph. Memory and caches have 16 bits.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hybrid_deploy.calibration.short_range import ShortFloat, shortened, uses_of
from hybrid_deploy.calibration.transpose import move_transposes_behind_products
from hybrid_deploy.contract import GraphRole, is_next_cache

_DTYPE_ATTRIBUTES = {"Cast": "to", "EyeLike": "dtype"}
# Operators that know no float of 16 bits: the indexes of the inputs that stay float32, and whether
# the outputs do.
_FLOAT32_INPUTS: dict[str, tuple[int, ...]] = {"Range": (0, 1, 2), "Resize": (1, 2)}
_FLOAT32_OUTPUTS = frozenset({"Range"})


def shorten_floats(model: ir.Model, role: GraphRole, form: ShortFloat) -> None:
    """Rewrites a graph in place.

    Raises:
        CalibrationError: a weight does not fit, or is not a number.
    """
    move_transposes_behind_products(model)
    kept = _float32_constants(model.graph)
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.dtype is ir.DataType.FLOAT and value not in kept:
                tensor = value.const_value
                assert tensor is not None, f"initializer {value.name} has no value"
                short = shortened(str(value.name), tensor.numpy(), uses_of(value), form)
                value.const_value = ir.tensor(short, name=value.name)
                value.dtype = form.dtype
    nodes = list(model.graph.all_nodes())
    for node in nodes:
        _convert_attributes(node, form)
    for value in (*model.graph.inputs, *(out for node in nodes for out in node.outputs)):
        if value.dtype is ir.DataType.FLOAT:
            value.dtype = form.dtype
    for node in nodes:
        _guard_float32_operator(node, kept, form)
    _keep_float32_border(model.graph, role, form)


def _float32_constants(graph: ir.Graph) -> set[ir.Value]:
    """Finds the constants that only operators without a float of 16 bits take."""
    return {
        value
        for value in graph.initializers.values()
        if (uses := value.uses())
        and all(index in _FLOAT32_INPUTS.get(node.op_type, ()) for node, index in uses)
    }


def _convert_attributes(node: ir.Node, form: ShortFloat) -> None:
    name = f"{node.op_type} {node.name}"
    key = _DTYPE_ATTRIBUTES.get(node.op_type, "")
    if node.attributes.get_int(key, ir.DataType.UNDEFINED) == ir.DataType.FLOAT:
        node.attributes[key] = ir.AttrInt64(key, form.dtype)
    if node.op_type == "Constant":
        _convert_constant(node, name, form)
    elif node.op_type == "ConstantOfShape":
        array = np.zeros(1, np.float32)
        if "value" in node.attributes:
            array = node.attributes["value"].as_tensor().numpy()
        if array.dtype == np.float32:
            short = shortened(name, array, uses_of(node.outputs[0]), form)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(short))


def _convert_constant(node: ir.Node, name: str, form: ShortFloat) -> None:
    for key in ("value", "value_float", "value_floats"):
        if key not in node.attributes:
            continue
        given = node.attributes[key]
        array = given.as_tensor().numpy() if key == "value" else np.array(given.value, np.float32)
        if array.dtype == np.float32:
            del node.attributes[key]
            short = ir.tensor(shortened(name, array, uses_of(node.outputs[0]), form))
            node.attributes["value"] = ir.AttrTensor("value", short)


def _guard_float32_operator(node: ir.Node, kept: set[ir.Value], form: ShortFloat) -> None:
    """Puts Casts around an operator that has no form in 16 bits."""
    for index in _FLOAT32_INPUTS.get(node.op_type, ()):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and value not in kept and value.dtype is form.dtype:
            node.replace_input_with(index, _cast_before(node, value, ir.DataType.FLOAT))
    if node.op_type in _FLOAT32_OUTPUTS and node.outputs[0].dtype is form.dtype:
        _cast_after(node, node.outputs[0], form.dtype)
        node.outputs[0].dtype = ir.DataType.FLOAT


def _keep_float32_border(graph: ir.Graph, role: GraphRole, form: ShortFloat) -> None:
    if role is GraphRole.ENCODER:
        for value in graph.inputs:
            if value.dtype is form.dtype:
                value.dtype = ir.DataType.FLOAT
                _cast_input(graph, value, form)
        return
    for index, head in enumerate(list(graph.outputs)):
        name = str(head.name)
        if is_next_cache(name) or head.dtype is not form.dtype:
            continue
        head.name = f"{name}_short"
        cast = ir.node("Cast", [head], {"to": ir.DataType.FLOAT}, name=f"cast_{name}")
        _describe(cast.outputs[0], name, head, ir.DataType.FLOAT)
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]


def _cast_input(graph: ir.Graph, value: ir.Value, form: ShortFloat) -> None:
    first = next(iter(graph))
    users = [(node, index) for node, index in value.uses()]
    cast = ir.node("Cast", [value], {"to": form.dtype}, name=f"cast_{value.name}")
    _describe(cast.outputs[0], f"{value.name}_short", value, form.dtype)
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
    _describe(cast.outputs[0], f"{value.name}_short", value, dtype)
    _home(node).insert_after(node, cast)
    for user, index in users:
        user.replace_input_with(index, cast.outputs[0])


def _describe(new: ir.Value, name: str, like: ir.Value, dtype: ir.DataType) -> None:
    new.name, new.shape, new.dtype = name, like.shape, dtype


def _home(node: ir.Node) -> ir.Graph:
    graph = node.graph
    assert isinstance(graph, ir.Graph), "a node that is rewritten belongs to a graph"
    return graph

"""Float32 graphs converted to float16 or bfloat16.

    BEFORE                              AFTER
    x (float32)                         x (float32 at the encoder's interface, else 16 bits)
    |                                   Cast (to 16 bits), only for an encoder input
    MatMul (float32 weight)             MatMul (16-bit weight)
    |                                   Cast (to float32)
    Mul -> overflowing tensor           Mul -> overflowing tensor, in float32
    |                                   Cast (to 16 bits)
    logits (float32)                    Cast (to float32), logits (float32)

The encoder's inputs and the decoder's heads stay float32 for the caller; memory and caches have 16
bits. A tensor that overflowed on the samples stays float32, and so do the operators that compute or
use it. Resize and Range have inputs that exist in float32 only.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from hybrid_deploy.calibration.graphs.graph_edits import describe
from hybrid_deploy.calibration.graphs.transpose_motion import move_transposes_behind_products
from hybrid_deploy.calibration.half_precision.float16_range import (
    HalfType,
    consumers_of,
    round_to_half,
)
from hybrid_deploy.contract import GraphRole, is_next_cache
from hybrid_deploy.errors import CalibrationError

_DTYPE_ATTRIBUTES = {"Cast": "to", "EyeLike": "dtype"}
# Operators without 16-bit kernels or types: the indexes of their inputs that stay float32, and the
# operators whose outputs do.
_FLOAT32_INPUTS: dict[str, tuple[int, ...]] = {"Range": (0, 1, 2), "Resize": (1, 2)}
_FLOAT32_OUTPUTS = frozenset({"Range"})
_MOVED_SUFFIX = "/moved"  # `move_transposes_behind_products` adds it to a name


def convert_to_half(
    model: ir.Model, role: GraphRole, half: HalfType, in_float32: Collection[str] = ()
) -> None:
    """Converts a float32 graph to a 16-bit type, in place.

    Args:
        model: the float32 graph.
        role: role of the graph; it decides which inputs and outputs stay float32.
        half: the 16-bit type.
        in_float32: names of tensors that stay float32, as `overflowing_tensors` returns them.

    Raises:
        CalibrationError: a weight lies beyond the range of the type or is NaN, or a tensor of
            `in_float32` is memory or a cache, which the other graph takes in 16 bits.
    """
    move_transposes_behind_products(model)
    _check_passed_on_tensors(model.graph, role, half, in_float32)
    float32_constants = _constants_in_float32(model.graph, in_float32)
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.dtype is ir.DataType.FLOAT and value not in float32_constants:
                tensor = value.const_value
                assert tensor is not None, f"initializer {value.name} has no value"
                half_array = round_to_half(
                    str(value.name), tensor.numpy(), consumers_of(value), half
                )
                value.const_value = ir.tensor(half_array, name=value.name)
                value.dtype = half.dtype
    nodes = list(model.graph.all_nodes())
    for node in nodes:
        _convert_attributes(node, half)
    for value in (*model.graph.inputs, *(output for node in nodes for output in node.outputs)):
        if value.dtype is ir.DataType.FLOAT and not _is_in_float32(value, in_float32):
            value.dtype = half.dtype
    for node in nodes:
        _cast_around_float32_operator(node, float32_constants, half, in_float32)
    _cast_graph_interface(model.graph, role, half)


def round_constants_to_half(model: ir.Model, half: HalfType) -> None:
    """Rounds the constants of a float32 graph to a 16-bit type, in place; they stay float32.

    Such a graph shows the magnitudes that the converted graph meets, without its overflows: masks
    are clamped as in the converted graph, activations are not rounded.

    Raises:
        CalibrationError: a weight lies beyond the range of the type or is NaN.
    """
    for value in model.graph.initializers.values():
        if value.dtype is ir.DataType.FLOAT and value.const_value is not None:
            array = value.const_value.numpy()
            half_array = round_to_half(str(value.name), array, consumers_of(value), half)
            value.const_value = ir.tensor(half_array.astype(np.float32), name=value.name)


def _check_passed_on_tensors(
    graph: ir.Graph, role: GraphRole, half: HalfType, in_float32: Collection[str]
) -> None:
    """Refuses float32 tensors among those that another graph takes in 16 bits."""
    for value in graph.outputs:
        passed_on = role is GraphRole.ENCODER or is_next_cache(str(value.name))
        if passed_on and _is_in_float32(value, in_float32):
            raise CalibrationError(
                f"{role.value}/{value.name} overflows {half.name} on these samples; "
                "quantize to bf16 or int8, or keep fp32"
            )


def _is_in_float32(value: ir.Value | None, in_float32: Collection[str]) -> bool:
    return value is not None and str(value.name).removesuffix(_MOVED_SUFFIX) in in_float32


def _computes_in_float32(node: ir.Node, in_float32: Collection[str]) -> bool:
    return any(_is_in_float32(value, in_float32) for value in (*node.inputs, *node.outputs))


def _float32_input_indexes(node: ir.Node, in_float32: Collection[str]) -> tuple[int, ...]:
    """Returns the indexes of an operator's inputs that are float32."""
    if _computes_in_float32(node, in_float32):
        return tuple(range(len(node.inputs)))
    return _FLOAT32_INPUTS.get(node.op_type, ())


def _constants_in_float32(graph: ir.Graph, in_float32: Collection[str]) -> set[ir.Value]:
    """Returns the constants that only float32 inputs of operators use."""
    return {
        value
        for value in graph.initializers.values()
        if (uses := value.uses())
        and all(index in _float32_input_indexes(node, in_float32) for node, index in uses)
    }


def _convert_attributes(node: ir.Node, half: HalfType) -> None:
    label = f"{node.op_type} {node.name}"
    key = _DTYPE_ATTRIBUTES.get(node.op_type, "")
    if node.attributes.get_int(key, ir.DataType.UNDEFINED) == ir.DataType.FLOAT:
        node.attributes[key] = ir.AttrInt64(key, half.dtype)
    if node.op_type == "Constant":
        _convert_constant(node, label, half)
    elif node.op_type == "ConstantOfShape":
        array = np.zeros(1, np.float32)
        if "value" in node.attributes:
            array = node.attributes["value"].as_tensor().numpy()
        if array.dtype == np.float32:
            half_array = round_to_half(label, array, consumers_of(node.outputs[0]), half)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(half_array))


def _convert_constant(node: ir.Node, label: str, half: HalfType) -> None:
    for key in ("value", "value_float", "value_floats"):
        if key not in node.attributes:
            continue
        attribute = node.attributes[key]
        array = (
            attribute.as_tensor().numpy()
            if key == "value"
            else np.array(attribute.value, np.float32)
        )
        if array.dtype == np.float32:
            del node.attributes[key]
            half_tensor = ir.tensor(
                round_to_half(label, array, consumers_of(node.outputs[0]), half)
            )
            node.attributes["value"] = ir.AttrTensor("value", half_tensor)


def _cast_around_float32_operator(
    node: ir.Node, float32_constants: set[ir.Value], half: HalfType, in_float32: Collection[str]
) -> None:
    """Inserts Casts before and behind an operator that computes in float32."""
    for index in _float32_input_indexes(node, in_float32):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and value not in float32_constants and value.dtype is half.dtype:
            node.replace_input_with(index, _cast_before(node, value, ir.DataType.FLOAT))
    returns_float32 = node.op_type in _FLOAT32_OUTPUTS or _computes_in_float32(node, in_float32)
    for output in node.outputs:
        if returns_float32 and output.dtype is half.dtype:
            _cast_after(node, output, half.dtype)
            output.dtype = ir.DataType.FLOAT


def _cast_graph_interface(graph: ir.Graph, role: GraphRole, half: HalfType) -> None:
    if role is GraphRole.ENCODER:
        for value in graph.inputs:
            if value.dtype is half.dtype:
                value.dtype = ir.DataType.FLOAT
                _cast_input(graph, value, half)
        return
    for index, output in enumerate(list(graph.outputs)):
        name = str(output.name)
        if is_next_cache(name) or output.dtype is not half.dtype:
            continue
        output.name = f"{name}_short"
        cast = ir.node("Cast", [output], {"to": ir.DataType.FLOAT}, name=f"cast_{name}")
        describe(cast.outputs[0], name, output, ir.DataType.FLOAT)
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]


def _cast_input(graph: ir.Graph, value: ir.Value, half: HalfType) -> None:
    first_node = next(iter(graph))
    uses = list(value.uses())
    cast = ir.node("Cast", [value], {"to": half.dtype}, name=f"cast_{value.name}")
    describe(cast.outputs[0], f"{value.name}_short", value, half.dtype)
    graph.insert_before(first_node, cast)
    for node, index in uses:
        node.replace_input_with(index, cast.outputs[0])


def _cast_before(node: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    name = f"{value.name}_for_{node.outputs[0].name}"
    cast = ir.node("Cast", [value], {"to": dtype}, name=f"cast_{name}")
    describe(cast.outputs[0], name, value, dtype)
    _graph_of(node).insert_before(node, cast)
    return cast.outputs[0]


def _cast_after(node: ir.Node, value: ir.Value, dtype: ir.DataType) -> None:
    uses = list(value.uses())
    if not uses:
        return
    cast = ir.node("Cast", [value], {"to": dtype}, name=f"cast_{value.name}")
    describe(cast.outputs[0], f"{value.name}_short", value, dtype)
    _graph_of(node).insert_after(node, cast)
    for user, index in uses:
        user.replace_input_with(index, cast.outputs[0])


def _graph_of(node: ir.Node) -> ir.Graph:
    graph = node.graph
    assert isinstance(graph, ir.Graph), "a node that is rewritten belongs to a graph"
    return graph

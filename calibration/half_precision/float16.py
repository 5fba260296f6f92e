"""Float32 graphs to float16 or bfloat16, so that no float32 product is left but where it must be.

The caller sees two float32 tensors still: the encoder's inputs and what the heads give, each behind
a Cast inside the graph. Memory and caches have 16 bits. What was seen to overflow 16 bits stays
float32, with the operators that make it and that take it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from hybrid_deploy.calibration.graphs.transpose_motion import move_transposes_behind_products
from hybrid_deploy.calibration.half_precision.float16_range import (
    HalfType,
    consumers_of,
    round_to_half,
)
from hybrid_deploy.contract import GraphRole, is_next_cache
from hybrid_deploy.errors import CalibrationError

_DTYPE_ATTRIBUTES = {"Cast": "to", "EyeLike": "dtype"}
# Operators that know no float of 16 bits: the indexes of the inputs that stay float32, and whether
# the outputs do.
_FLOAT32_INPUTS: dict[str, tuple[int, ...]] = {"Range": (0, 1, 2), "Resize": (1, 2)}
_FLOAT32_OUTPUTS = frozenset({"Range"})
_MOVED = "/moved"  # what `move_transposes_behind_products` adds to a name
_NEAR_OVERFLOW = 0.75  # of the largest number: other inputs may go further than the samples did


def convert_to_half(
    model: ir.Model, role: GraphRole, half: HalfType, in_float32: Collection[str] = ()
) -> None:
    """Rewrites a graph in place.

    Args:
        model: float32.
        role: what the graph is.
        half: float16 or bfloat16.
        in_float32: names of tensors that stay float32, as `overflowing_tensors` returns them.

    Raises:
        CalibrationError: a weight does not fit, or is not a number, or memory or a cache is wide.
    """
    move_transposes_behind_products(model)
    _check_border(model.graph, role, half, in_float32)
    kept = _float32_constants(model.graph, in_float32)
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.dtype is ir.DataType.FLOAT and value not in kept:
                tensor = value.const_value
                assert tensor is not None, f"initializer {value.name} has no value"
                short = round_to_half(str(value.name), tensor.numpy(), consumers_of(value), half)
                value.const_value = ir.tensor(short, name=value.name)
                value.dtype = half.dtype
    nodes = list(model.graph.all_nodes())
    for node in nodes:
        _convert_attributes(node, half)
    for value in (*model.graph.inputs, *(out for node in nodes for out in node.outputs)):
        if value.dtype is ir.DataType.FLOAT and not _is_wide(value, in_float32):
            value.dtype = half.dtype
    for node in nodes:
        _guard_float32_operator(node, kept, half, in_float32)
    _keep_float32_border(model.graph, role, half)


def round_constants_to_half(model: ir.Model, half: HalfType) -> None:
    """Rounds the constants of a float32 graph to 16 bits, in place; masks end up within the range.

    What such a graph computes is what the short one would, but for overflow and rounding.

    Raises:
        CalibrationError: a weight does not fit, or is not a number.
    """
    for value in model.graph.initializers.values():
        if value.dtype is ir.DataType.FLOAT and value.const_value is not None:
            array = value.const_value.numpy()
            short = round_to_half(str(value.name), array, consumers_of(value), half)
            value.const_value = ir.tensor(short.astype(np.float32), name=value.name)


def overflowing_tensors(magnitudes: Mapping[str, float], half: HalfType) -> frozenset[str]:
    """Names the tensors that overflow a float of 16 bits, or come near, by their magnitudes."""
    limit = _NEAR_OVERFLOW * half.largest
    return frozenset(name for name, largest in magnitudes.items() if largest > limit)


def _check_border(graph: ir.Graph, role: GraphRole, form: HalfType, wide: Collection[str]) -> None:
    """Refuses wide tensors that the other graph would take in 16 bits."""
    for value in graph.outputs:
        passed_on = role is GraphRole.ENCODER or is_next_cache(str(value.name))
        if passed_on and _is_wide(value, wide):
            raise CalibrationError(
                f"{role.value}/{value.name} overflows {form.name} on these samples; "
                "quantize to bf16 or int8, or keep fp32"
            )


def _is_wide(value: ir.Value | None, wide: Collection[str]) -> bool:
    return value is not None and str(value.name).removesuffix(_MOVED) in wide


def _computes_wide(node: ir.Node, wide: Collection[str]) -> bool:
    return any(_is_wide(value, wide) for value in (*node.inputs, *node.outputs))


def _float32_inputs(node: ir.Node, wide: Collection[str]) -> tuple[int, ...]:
    """Returns the indexes of the inputs that an operator takes in float32."""
    if _computes_wide(node, wide):
        return tuple(range(len(node.inputs)))
    return _FLOAT32_INPUTS.get(node.op_type, ())


def _float32_constants(graph: ir.Graph, wide: Collection[str]) -> set[ir.Value]:
    """Finds the constants that only operators in float32 take."""
    return {
        value
        for value in graph.initializers.values()
        if (uses := value.uses())
        and all(index in _float32_inputs(node, wide) for node, index in uses)
    }


def _convert_attributes(node: ir.Node, form: HalfType) -> None:
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
            short = round_to_half(name, array, consumers_of(node.outputs[0]), form)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(short))


def _convert_constant(node: ir.Node, name: str, form: HalfType) -> None:
    for key in ("value", "value_float", "value_floats"):
        if key not in node.attributes:
            continue
        given = node.attributes[key]
        array = given.as_tensor().numpy() if key == "value" else np.array(given.value, np.float32)
        if array.dtype == np.float32:
            del node.attributes[key]
            short = ir.tensor(round_to_half(name, array, consumers_of(node.outputs[0]), form))
            node.attributes["value"] = ir.AttrTensor("value", short)


def _guard_float32_operator(
    node: ir.Node, kept: set[ir.Value], form: HalfType, wide: Collection[str]
) -> None:
    """Puts Casts around an operator that computes in float32."""
    for index in _float32_inputs(node, wide):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and value not in kept and value.dtype is form.dtype:
            node.replace_input_with(index, _cast_before(node, value, ir.DataType.FLOAT))
    gives_float32 = node.op_type in _FLOAT32_OUTPUTS or _computes_wide(node, wide)
    for output in node.outputs:
        if gives_float32 and output.dtype is form.dtype:
            _cast_after(node, output, form.dtype)
            output.dtype = ir.DataType.FLOAT


def _keep_float32_border(graph: ir.Graph, role: GraphRole, form: HalfType) -> None:
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


def _cast_input(graph: ir.Graph, value: ir.Value, form: HalfType) -> None:
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
    if not users:
        return
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

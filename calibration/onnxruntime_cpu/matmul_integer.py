"""Products of unsigned activations and int8 weights with their bias, as one operator.

    BEFORE                                       AFTER
    DequantizeLinear (activation, scale, zero)   MatMulIntegerToFloat (activation, weight, scales,
    DequantizeLinear (weight, scale)                                   zero points, bias)
    MatMul                                       y
    Add or Sum (constant row)
    y

ONNX Runtime makes this operator of the nodes around a MatMul itself, but without the bias. The
operator exists in its CPU backend alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hybrid_deploy.calibration.graphs.graph_edits import constant, describe

_DOMAIN = "com.microsoft"


def fuse_matmul_integer(model: ir.Model) -> int:
    """Fuses DequantizeLinear, MatMul and the Add of a constant row, in place.

    The replaced nodes stay in the graph.

    Returns:
        The number of fused products.
    """
    graph = model.graph
    fused = sum(_fuse(graph, node) for node in list(graph) if node.op_type == "MatMul")
    if fused:
        model.graph.opset_imports[_DOMAIN] = 1
    return fused


def _fuse(graph: ir.Graph, product: ir.Node) -> bool:
    activation_inputs, weight_inputs = (_dequantize_inputs(value) for value in product.inputs)
    if activation_inputs is None or weight_inputs is None:
        return False
    if len(activation_inputs) != 3 or len(weight_inputs) != 2:
        return False
    activation, activation_scale, activation_zero = activation_inputs
    weight, weight_scale = weight_inputs
    if weight.const_value is None:
        return False
    add_and_bias = _bias_add(product, weight.const_value.numpy().shape[-1:])
    if add_and_bias is None:
        return False
    add, bias = add_and_bias
    weight_zero = constant(graph, f"{weight.name}_zero_point", np.zeros((), np.int8))
    inputs = [activation, weight, activation_scale, weight_scale, activation_zero, weight_zero]
    name = f"{add.outputs[0].name}_product"
    node = ir.node("MatMulIntegerToFloat", [*inputs, bias], domain=_DOMAIN, name=name)
    describe(node.outputs[0], name, add.outputs[0], ir.DataType.FLOAT)
    graph.insert_before(add, node)
    add.outputs[0].replace_all_uses_with(node.outputs[0])
    return True


def _dequantize_inputs(value: ir.Value | None) -> list[ir.Value] | None:
    """Returns the inputs of a value's DequantizeLinear; None without one, or with one in blocks."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or "block_size" in node.attributes:
        return None
    return [input_ for input_ in node.inputs if input_ is not None]


def _bias_add(product: ir.Node, shape: tuple[int, ...]) -> tuple[ir.Node, ir.Value] | None:
    """Returns the only user of a product and the constant of that shape that it adds, or None."""
    users = list(product.outputs[0].uses())
    if len(users) != 1 or users[0][0].op_type not in ("Add", "Sum"):
        return None
    add, index = users[0]
    if len(add.inputs) != 2 or add.outputs[0].is_graph_output():
        return None
    bias = add.inputs[1 - index]
    if bias is None or bias.const_value is None:
        return None
    return (add, bias) if bias.const_value.numpy().shape == shape else None

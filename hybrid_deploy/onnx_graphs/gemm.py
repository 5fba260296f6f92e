"""Splits Gemm into MatMul and Add, in which quantization and kernels look for weights.

before   Gemm(rows, weight, bias), transB=1     weight (outputs, inputs)

after    MatMul(rows, weight_transposed)        weight_transposed (inputs, outputs)
         Add(product, bias)

With transB=0 the weight is (inputs, outputs) already and keeps its name.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def is_embedding(weight: ir.Value) -> bool:
    """Returns whether a Gather also reads a weight: a projection tied to the embedding."""
    return any(user.op_type == "Gather" for user, _ in weight.uses())


def split_gemm(graph: ir.Graph, node: ir.Node) -> None:
    """Replaces a Gemm by MatMul and Add in place.

    The Gemm stays if alpha or beta is not 1, if its rows are transposed, or if a transposed weight
    is not an initializer.
    """
    rows, weight, *bias = node.inputs
    attributes = node.attributes
    is_scaled = any(attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    if is_scaled or weight is None or attributes.get_int("transA", 0) != 0:
        return
    if attributes.get_int("transB", 0):
        if weight.const_value is None:
            return
        weight = _transposed(graph, weight)
    product = ir.node("MatMul", [rows, weight], name=f"{node.name}_product")
    result, nodes = product.outputs[0], [product]
    result.type, result.shape = node.outputs[0].type, node.outputs[0].shape
    if bias and bias[0] is not None:
        nodes.append(ir.node("Add", [result, bias[0]], name=f"{node.name}_bias"))
        result = nodes[-1].outputs[0]
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [node.outputs[0]], [result])


def _transposed(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    name = f"{weight.name}_transposed"
    if name not in graph.initializers:
        assert weight.const_value is not None
        data = np.ascontiguousarray(weight.const_value.numpy().T)
        value = ir.Value(
            name=name,
            shape=ir.Shape(data.shape),
            type=ir.TensorType(weight.const_value.dtype),
            const_value=ir.Tensor(data, dtype=weight.const_value.dtype, name=name),
        )
        graph.register_initializer(value)
    return graph.initializers[name]

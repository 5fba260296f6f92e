"""Batch normalization folded into the convolution before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_DEFAULT_EPSILON = 1e-5


def fold_batchnorm(model: ir.Model) -> int:
    """Folds every BatchNormalization that follows a convolution alone, in place.

    Returns:
        How many were folded.
    """
    graph = model.graph
    pairs = [(node, conv) for node in graph if (conv := _convolution_before(node)) is not None]
    for node, conv in pairs:
        _fold(graph, node, conv)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return len(pairs)


def _convolution_before(node: ir.Node) -> ir.Node | None:
    if node.op_type != "BatchNormalization" or node.attributes.get_int("training_mode"):
        return None
    conv = node.inputs[0].producer() if node.inputs[0] is not None else None
    if conv is None or conv.op_type != "Conv" or len(conv.outputs[0].uses()) != 1:
        return None
    constants = (*node.inputs[1:], *conv.inputs[1:])
    return conv if all(v is None or v.const_value is not None for v in constants) else None


def _fold(graph: ir.Graph, node: ir.Node, conv: ir.Node) -> None:
    gamma, beta, mean, variance = (_array(value) for value in node.inputs[1:5])
    epsilon = node.attributes.get_float("epsilon", _DEFAULT_EPSILON)
    factor = gamma / np.sqrt(variance + epsilon)
    weight = _array(conv.inputs[1])
    bias = _array(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else 0.0
    folded = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    inputs = [
        conv.inputs[0],
        _register(graph, f"{node.name}_weight", folded),
        _register(graph, f"{node.name}_bias", (bias - mean) * factor + beta),
    ]
    merged = ir.node("Conv", inputs, dict(conv.attributes), name=conv.name)
    graph.insert_before(conv, merged)
    ir.convenience.replace_nodes_and_values(
        graph, node, [conv, node], [], [node.outputs[0]], [merged.outputs[0]]
    )


def _array(value: ir.Value | None) -> NDArray[np.float64]:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _register(graph: ir.Graph, name: str, array: NDArray[np.float64]) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(array.astype(np.float32), name=name))
    graph.register_initializer(value)
    return value

"""Batch normalization folded into the convolution before it.

    BEFORE                                          AFTER
    x                                               x
    Conv (weight, bias?)                            Conv (weight * f, (bias - mean) * f + beta)
    BatchNormalization (gamma, beta, mean, var)     y
    y

f = gamma / sqrt(var + epsilon), one factor for each output channel, computed in float64. The
pattern matches where the convolution's output has no other use and all parameters are constants.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_DEFAULT_EPSILON = 1e-5


def fold_batchnorm(model: ir.Model) -> int:
    """Folds every BatchNormalization that alone uses the output of a convolution, in place.

    Returns:
        The number of folded normalizations.
    """
    graph = model.graph
    pairs = [(node, conv) for node in graph if (conv := _convolution_before(node)) is not None]
    for node, conv in pairs:
        _fold(graph, node, conv)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return len(pairs)


def _convolution_before(batchnorm: ir.Node) -> ir.Node | None:
    if batchnorm.op_type != "BatchNormalization" or batchnorm.attributes.get_int("training_mode"):
        return None
    conv = batchnorm.inputs[0].producer() if batchnorm.inputs[0] is not None else None
    if conv is None or conv.op_type != "Conv" or len(conv.outputs[0].uses()) != 1:
        return None
    constants = (*batchnorm.inputs[1:], *conv.inputs[1:])
    return conv if all(v is None or v.const_value is not None for v in constants) else None


def _fold(graph: ir.Graph, batchnorm: ir.Node, conv: ir.Node) -> None:
    gamma, beta, mean, variance = (_array(value) for value in batchnorm.inputs[1:5])
    epsilon = batchnorm.attributes.get_float("epsilon", _DEFAULT_EPSILON)
    factor = gamma / np.sqrt(variance + epsilon)
    weight = _array(conv.inputs[1])
    bias = _array(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else 0.0
    folded = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    inputs = [
        conv.inputs[0],
        _register(graph, f"{batchnorm.name}_weight", folded),
        _register(graph, f"{batchnorm.name}_bias", (bias - mean) * factor + beta),
    ]
    merged = ir.node("Conv", inputs, dict(conv.attributes), name=conv.name)
    graph.insert_before(conv, merged)
    ir.convenience.replace_nodes_and_values(
        graph, batchnorm, [conv, batchnorm], [], [batchnorm.outputs[0]], [merged.outputs[0]]
    )


def _array(value: ir.Value | None) -> NDArray[np.float64]:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _register(graph: ir.Graph, name: str, array: NDArray[np.float64]) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(array.astype(np.float32), name=name))
    graph.register_initializer(value)
    return value

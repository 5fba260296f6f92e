"""The product that computes the logits, found from the logits back through a graph.

hidden -> MatMul or Gemm (weight) [-> Add (bias)] [-> element-wise operators] -> logits
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.calibration.qdq.linear_operators import Linear, linear_operators
from hybrid_deploy.contract import LOGITS

MIN_VOCABULARY = 4096
"""Least vocabulary size, in tokens, whose projection is worth a second stage."""

_ELEMENTWISE = frozenset(
    {"Add", "Cast", "Clip", "Div", "Identity", "Mul", "Sub", "Tanh", "Reshape", "Squeeze"}
)


@dataclass(frozen=True)
class VocabularyProjection:
    """The product that computes the logits.

    Attributes:
        linear: the product; its channels are the tokens.
        bias: the constant that the next operator adds, or that the Gemm adds, (vocabulary,); None
            without.
        output: the product with its bias, (..., vocabulary).
    """

    linear: Linear
    bias: ir.Value | None
    output: ir.Value

    @property
    def table(self) -> NDArray[np.float32]:
        """The weight as an embedding has it, (vocabulary, width)."""
        matrix: NDArray[np.float32] = self.linear.matrix.T
        return matrix


def vocabulary_projection(graph: ir.Graph) -> VocabularyProjection | None:
    """Returns the product that computes the logits; None if there is none with a float32 weight."""
    linears = {linear.node: linear for linear in linear_operators(graph)}
    value = next((value for value in graph.outputs if value.name == LOGITS), None)
    while value is not None and (node := value.producer()) is not None:
        if node in linears:
            return _with_bias(linears[node])
        if node.op_type not in _ELEMENTWISE or node.domain:
            return None
        value = _only_computed_input(node)
    return None


def _only_computed_input(node: ir.Node) -> ir.Value | None:
    """Returns the only input of a node that is not constant; None if several are not."""
    computed = [value for value in node.inputs if value is not None and value.const_value is None]
    return computed[0] if len(computed) == 1 else None


def _with_bias(linear: Linear) -> VocabularyProjection | None:
    """Returns a projection with the bias that it adds itself, or the next operator."""
    node, output = linear.node, linear.node.outputs[0]
    if [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")] != [1.0, 1.0]:
        return None
    words = linear.weight_shape[linear.channel_axis]
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    if bias is not None:
        return VocabularyProjection(linear, bias, output) if _is_row(bias, words) else None
    uses = list(output.uses())
    if len(uses) == 1 and not output.is_graph_output() and uses[0][0].op_type in ("Add", "Sum"):
        user, index = uses[0]
        added = user.inputs[1 - index] if len(user.inputs) == 2 else None
        if added is not None and _is_row(added, words):
            return VocabularyProjection(linear, added, user.outputs[0])
    return VocabularyProjection(linear, None, output)


def _is_row(value: ir.Value, words: int) -> bool:
    tensor = value.const_value
    return tensor is not None and tuple(tensor.shape.numpy()) == (words,)

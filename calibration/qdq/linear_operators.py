"""Where int8 enters a graph: the linear operators, and the tensors that are quantized for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_FUSED_ACTIVATIONS = frozenset({"Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
# Operators that only pick or move numbers, so that a scale holds on both sides.
_MOVING = frozenset({"Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})

NodeInput = tuple[ir.Node, int]


@dataclass(frozen=True)
class Linear:
    """An operator with a constant float32 weight.

    Attributes:
        node: Conv, MatMul or Gemm; its input 0 is the activation, 1 the weight.
        channel_axis: the weight's axis of output channels.
    """

    node: ir.Node
    channel_axis: int

    @property
    def activation(self) -> ir.Value:
        """The tensor that meets the weight."""
        return _required(self.node.inputs[0])

    @property
    def weight(self) -> ir.Value:
        """The constant."""
        return _required(self.node.inputs[1])

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Its sizes."""
        assert self.weight.const_value is not None
        return tuple(int(size) for size in self.weight.const_value.shape.numpy())

    @property
    def matrix(self) -> NDArray[np.float32]:
        """The weight of a product as (summed axis, channels)."""
        assert self.weight.const_value is not None
        array: NDArray[np.float32] = self.weight.const_value.numpy()
        return array if self.channel_axis == 1 else array.T

    @property
    def is_grouped(self) -> bool:
        """Whether it is a convolution of channels in groups, as depthwise ones are."""
        return self.node.attributes.get_int("group", 1) != 1

    @property
    def name(self) -> str:
        """What its weight is called in the model, where that is known."""
        name = str(self.weight.name).removesuffix("_transposed").removesuffix(".weight")
        return name if "." in name else self._bias_name or name

    @property
    def _bias_name(self) -> str | None:
        """What the bias is called in the model: a weight that was rearranged lost its name."""
        bias = next((v for v in self.node.inputs[2:] if v is not None), None)
        for user, index in self.node.outputs[0].uses():
            if user.op_type in ("Add", "Sum") and bias is None:
                bias = user.inputs[1 - index]
        if bias is None or bias.const_value is None or "." not in str(bias.name):
            return None
        return str(bias.name).removesuffix(".bias")


def products_by_activation(targets: Iterable[Linear]) -> dict[str, list[Linear]]:
    """Groups the matrix products by the name of the tensor that they take."""
    groups: dict[str, list[Linear]] = {}
    for linear in targets:
        if linear.node.op_type != "Conv":
            groups.setdefault(str(linear.activation.name), []).append(linear)
    return groups


def linear_operators(graph: ir.Graph) -> list[Linear]:
    """Finds the operators whose weights can be quantized, in the graph's order."""
    return [Linear(node, axis) for node in graph if (axis := _channel_axis(node)) is not None]


def inputs_to_quantize(
    graph: ir.Graph, targets: Sequence[Linear] | None = None
) -> dict[ir.Value, list[NodeInput]]:
    """Returns the inputs of the operators to quantize, and nothing besides.

    Floats of 8 bits have 3 bits of precision: a skip branch is better off without.

    Args:
        graph: float32.
        targets: the operators to quantize; all of them if not given.
    """
    points: dict[ir.Value, list[NodeInput]] = {}
    for linear in linear_operators(graph) if targets is None else targets:
        points.setdefault(linear.activation, []).append((linear.node, 0))
    return points


def portable_tensors_to_quantize(
    graph: ir.Graph, targets: Sequence[Linear] | None = None
) -> dict[ir.Value, list[NodeInput]]:
    """Returns the tensors to quantize with the uses that take the quantized one.

    These are the inputs of the linear operators, and the skip branches of residual Adds: with
    them TensorRT runs convolution, activation and addition as one int8 kernel. The convolution's
    own output is left alone.

    Args:
        graph: float32.
        targets: the operators to quantize; all of them if not given.
    """
    chosen = linear_operators(graph) if targets is None else targets
    points = inputs_to_quantize(graph, chosen)
    for use, value in _skip_branches(graph, {linear.node for linear in chosen}):
        points.setdefault(value, []).append(use)
    return points


def cpu_tensors_to_quantize(
    graph: ir.Graph, targets: Sequence[Linear] | None = None
) -> dict[ir.Value, list[NodeInput]]:
    """Returns `portable_points`, and the outputs of convolutions where nothing else quantizes them.

    ONNX Runtime takes a convolution for an int8 one only when its output is quantized too.
    """
    chosen = linear_operators(graph) if targets is None else targets
    points = portable_tensors_to_quantize(graph, chosen)
    for linear in chosen:
        if linear.node.op_type == "Conv":
            output = _moved(_convolved(linear.node))
            if set(points.get(output, ())) != set(output.uses()):
                points[output] = list(output.uses())
    return points


def prevent_gemm_fusion(linear: Linear, *, quantizes_activations: bool) -> None:
    """Writes the Add behind a two-dimensional MatMul as a Sum, which is equal, where that helps.

    ONNX Runtime merges MatMul and Add, and MatMul, Add and activation, to one operator before it
    looks for numbers of few bits, and then converts the weights to float in every call. Where only
    weights are stored so, the Add of a bias alone becomes part of the right operator.
    """
    rank = None if linear.activation.shape is None else linear.activation.shape.rank()
    if linear.node.op_type != "MatMul" or rank not in (2, None):
        return
    for node, _ in _moved(linear.node.outputs[0]).uses():
        users = [user.op_type for user, _ in node.outputs[0].uses()]
        activated = any(user in _FUSED_ACTIVATIONS for user in users)
        biased = any(value is not None and value.const_value is not None for value in node.inputs)
        if node.op_type == "Add" and (quantizes_activations or activated or not biased):
            node.op_type = "Sum"


def _channel_axis(node: ir.Node) -> int | None:
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain:
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or weight.dtype is not ir.DataType.FLOAT:
        return None
    if node.op_type == "Conv":
        return 0
    if weight.const_value.shape.rank() != 2 or node.attributes.get_int("transA"):
        return None
    return 0 if node.attributes.get_int("transB") else 1


def _skip_branches(graph: ir.Graph, targets: set[ir.Node]) -> Iterator[tuple[NodeInput, ir.Value]]:
    for node in graph:
        if node.op_type != "Add":
            continue
        convolved = [_is_convolved(_required(value), targets) for value in node.inputs]
        if any(convolved):
            index = convolved.index(True) ^ 1
            skip = _required(node.inputs[index])
            if skip.const_value is None:
                yield (node, index), skip


def _is_convolved(value: ir.Value, targets: set[ir.Node]) -> bool:
    node = value.producer()
    if node is not None and node.op_type in _FUSED_ACTIVATIONS:
        node = _required(node.inputs[0]).producer()
    return node is not None and node.op_type == "Conv" and node in targets


def _convolved(node: ir.Node) -> ir.Value:
    """Returns what leaves a convolution and its activation."""
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) == 1 and uses[0][0].op_type in _FUSED_ACTIVATIONS:
        return uses[0][0].outputs[0]
    return output


def _moved(value: ir.Value) -> ir.Value:
    """Follows a tensor to where it is last moved: a scale chosen there holds here too."""
    while not value.is_graph_output():
        uses = list(value.uses())
        if len(uses) != 1 or uses[0][0].op_type not in _MOVING or uses[0][1] != 0:
            return value
        value = uses[0][0].outputs[0]
    return value


def _required(value: ir.Value | None) -> ir.Value:
    assert value is not None, "the input is not optional"
    return value

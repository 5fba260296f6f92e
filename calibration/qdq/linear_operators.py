"""The linear operators of a graph, and the tensors that are quantized for them.

The tensors depend on what the backend fuses:

    inputs_to_quantize               every activation of a linear operator
    portable_tensors_to_quantize     and the skip branch of Add(Conv, skip), for TensorRT
    cpu_tensors_to_quantize          and the output of every Conv, for ONNX Runtime's CPU kernels

`prevent_gemm_fusion` rewrites a pattern that ONNX Runtime would fuse to a float operator:

    BEFORE                                      AFTER
    MatMul (stored weight), Add, Relu           MatMul (stored weight), Sum, Relu
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_FUSED_ACTIVATIONS = frozenset({"Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
# Operators that only select or move numbers, so that input and output have the same scale.
_MOVING = frozenset({"Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})

NodeInput = tuple[ir.Node, int]
"""A node and the index of one of its inputs."""


@dataclass(frozen=True)
class Linear:
    """An operator with a constant float32 weight.

    Attributes:
        node: a Conv, MatMul or Gemm; its input 0 is the activation, input 1 the weight.
        channel_axis: the axis of the weight that counts output channels.
    """

    node: ir.Node
    channel_axis: int

    @property
    def activation(self) -> ir.Value:
        """The tensor that the weight is applied to."""
        return _present(self.node.inputs[0])

    @property
    def weight(self) -> ir.Value:
        """The weight, an initializer."""
        return _present(self.node.inputs[1])

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The sizes of the weight."""
        assert self.weight.const_value is not None
        return tuple(int(size) for size in self.weight.const_value.shape.numpy())

    @property
    def summed_size(self) -> int:
        """The number of weights of each channel, over which a product sums."""
        return self.weight_shape[1 - self.channel_axis]

    @property
    def matrix(self) -> NDArray[np.float32]:
        """The weight of a product as (summed axis, channels)."""
        assert self.weight.const_value is not None
        array: NDArray[np.float32] = self.weight.const_value.numpy()
        return array if self.channel_axis == 1 else array.T

    @property
    def is_grouped(self) -> bool:
        """Whether the operator is a convolution with several groups, such as a depthwise one."""
        return self.node.attributes.get_int("group", 1) != 1

    @property
    def name(self) -> str:
        """The name of the weight's module in the model, as far as the graph holds it."""
        name = str(self.weight.name).removesuffix("_transposed").removesuffix(".weight")
        return name if "." in name else self._name_from_bias or name

    @property
    def _name_from_bias(self) -> str | None:
        """The module's name from its bias: the exporter renames a weight that it rearranges."""
        bias = next((value for value in self.node.inputs[2:] if value is not None), None)
        for user, index in self.node.outputs[0].uses():
            if user.op_type in ("Add", "Sum") and bias is None:
                bias = user.inputs[1 - index]
        if bias is None or bias.const_value is None or "." not in str(bias.name):
            return None
        return str(bias.name).removesuffix(".bias")


def products_by_activation(targets: Iterable[Linear]) -> dict[str, list[Linear]]:
    """Returns the matrix products (no convolutions) by the name of their activation."""
    groups: dict[str, list[Linear]] = {}
    for linear in targets:
        if linear.node.op_type != "Conv":
            groups.setdefault(str(linear.activation.name), []).append(linear)
    return groups


def linear_operators(graph: ir.Graph) -> list[Linear]:
    """Returns the operators whose weights can be quantized, in the graph's order."""
    return [Linear(node, axis) for node in graph if (axis := _channel_axis(node)) is not None]


def inputs_to_quantize(
    graph: ir.Graph, targets: Sequence[Linear] | None = None
) -> dict[ir.Value, list[NodeInput]]:
    """Returns the activations of the operators to quantize, and no other tensors.

    That is all for decoders, whose convolutions stay float, and for encoders in 8-bit floats: these
    have a precision of 3 bits, so rounding a skip branch to them would cost too much.

    Args:
        graph: the float32 graph.
        targets: the operators to quantize; None for all linear operators of the graph.

    Returns:
        For each tensor, the node inputs that receive the quantized tensor.
    """
    inputs: dict[ir.Value, list[NodeInput]] = {}
    for linear in linear_operators(graph) if targets is None else targets:
        inputs.setdefault(linear.activation, []).append((linear.node, 0))
    return inputs


def portable_tensors_to_quantize(
    graph: ir.Graph, targets: Sequence[Linear] | None = None
) -> dict[ir.Value, list[NodeInput]]:
    """Returns the tensors to quantize for TensorRT.

    These are the activations of the linear operators and the skip branches of residual Adds: with
    both, TensorRT runs convolution, activation function and addition as one int8 kernel. The output
    of the convolution itself is not quantized.

    Args:
        graph: the float32 graph.
        targets: the operators to quantize; None for all linear operators of the graph.

    Returns:
        For each tensor, the node inputs that receive the quantized tensor.
    """
    operators = linear_operators(graph) if targets is None else targets
    inputs = inputs_to_quantize(graph, operators)
    for node_input, value in _skip_branches(graph, {linear.node for linear in operators}):
        inputs.setdefault(value, []).append(node_input)
    return inputs


def cpu_tensors_to_quantize(
    graph: ir.Graph, targets: Sequence[Linear] | None = None
) -> dict[ir.Value, list[NodeInput]]:
    """Returns the tensors to quantize for ONNX Runtime's CPU kernels.

    These are the tensors of `portable_tensors_to_quantize` and the outputs of all convolutions:
    ONNX Runtime runs a convolution in int8 only if all uses of its output are quantized too.

    Args:
        graph: the float32 graph.
        targets: the operators to quantize; None for all linear operators of the graph.

    Returns:
        For each tensor, the node inputs that receive the quantized tensor.
    """
    operators = linear_operators(graph) if targets is None else targets
    inputs = portable_tensors_to_quantize(graph, operators)
    for linear in operators:
        if linear.node.op_type == "Conv":
            output = _after_moving(_activated_output(linear.node))
            if set(inputs.get(output, ())) != set(output.uses()):
                inputs[output] = list(output.uses())
    return inputs


def prevent_gemm_fusion(linear: Linear, *, quantizes_activations: bool) -> None:
    """Replaces the Add behind a two-dimensional MatMul by an equal Sum, in place, where that helps.

    ONNX Runtime fuses MatMul and Add into Gemm before it matches quantized operators, and then
    converts the stored weight to float in every call; it does not fuse Sum. Where only the weight
    is quantized and no activation function follows, ONNX Runtime adds a constant bias in the
    quantized operator itself, so that Add stays.
    """
    rank = None if linear.activation.shape is None else linear.activation.shape.rank()
    if linear.node.op_type != "MatMul" or rank not in (2, None):
        return
    for node, _ in _after_moving(linear.node.outputs[0]).uses():
        users = [user.op_type for user, _ in node.outputs[0].uses()]
        is_activated = any(user in _FUSED_ACTIVATIONS for user in users)
        has_bias = any(value is not None and value.const_value is not None for value in node.inputs)
        if node.op_type == "Add" and (quantizes_activations or is_activated or not has_bias):
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
        from_convolution = [
            _is_convolution_output(_present(value), targets) for value in node.inputs
        ]
        if any(from_convolution):
            index = from_convolution.index(True) ^ 1
            skip_branch = _present(node.inputs[index])
            if skip_branch.const_value is None:
                yield (node, index), skip_branch


def _is_convolution_output(value: ir.Value, targets: set[ir.Node]) -> bool:
    node = value.producer()
    if node is not None and node.op_type in _FUSED_ACTIVATIONS:
        node = _present(node.inputs[0]).producer()
    return node is not None and node.op_type == "Conv" and node in targets


def _activated_output(node: ir.Node) -> ir.Value:
    """Returns the output of a convolution, or that of the activation function fused with it."""
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) == 1 and uses[0][0].op_type in _FUSED_ACTIVATIONS:
        return uses[0][0].outputs[0]
    return output


def _after_moving(value: ir.Value) -> ir.Value:
    """Returns a tensor after the operators that only move its numbers; the scale is the same."""
    while not value.is_graph_output():
        uses = list(value.uses())
        if len(uses) != 1 or uses[0][0].op_type not in _MOVING or uses[0][1] != 0:
            return value
        value = uses[0][0].outputs[0]
    return value


def _present(value: ir.Value | None) -> ir.Value:
    assert value is not None, "linear operators and Adds have these inputs"
    return value

"""Adds outputs to a decoder network that choose the next token, so that the loop stays on the GPU.

BEFORE  ... -> logits

AFTER   ... -> logits
        logits -> Cast FLOAT -> TopK 1 -> index -> Cast INT64 -> Shuffle (-1,) -> next_token
        logits -> Cast FLOAT -> SUB largest -> EXP -> Reduce SUM -> LOG -> NEG -> score
        position [-> SUM last] -> SUM 1 -> MIN capacity - 1                    -> next_position

A parsed prefill or step network that returns `logits` gets these three outputs, `(batch,)` each:

next_token     int64    the likeliest token; any one of several equally likely tokens
next_position  int64    the position of that token: the next step's `position`, at most
                        capacity - 1; missing in a network without an input `position`
score          float32  log-probability of that token; not finite if the logits are not finite

The logits stay an output. A caller with another choice of tokens reads them; any other caller binds
them to a buffer that is never copied to the host. In TensorRT-RTX the output of the logits costs no
kernel; the three new outputs together cost two kernels for one sequence, else three.

Bind none of the three to the buffer of `token` or `position`: TensorRT may write an output before
it has read all inputs. Copy them there after the step, or run two steps with swapped buffers in
turn.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hybrid_deploy.contract import (
    LAST,
    LOGITS,
    NEXT_POSITION,
    NEXT_TOKEN,
    POSITION,
    SCORE,
    TOKEN,
    TOKENS,
)
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import TensorRT

_VOCABULARY_AXIS = 1 << 1  # of logits (batch, vocabulary), as TensorRT's bit mask


def add_next_token_outputs(vendor: TensorRT, network: Any, capacity: int) -> list[object]:
    """Adds the outputs to a network that takes tokens and returns logits; changes no other one.

    Args:
        vendor: the loaded TensorRT.
        network: parsed `INetworkDefinition`.
        capacity: rows of a cache; positions stay below it.

    Returns:
        Arrays that the caller must hold until the engine is built: TensorRT reads the constants
        from these buffers.
    """
    inputs = {tensor.name: tensor for tensor in map(network.get_input, range(network.num_inputs))}
    outputs = {tensor.name for tensor in map(network.get_output, range(network.num_outputs))}
    if LOGITS not in outputs or not {TOKEN, TOKENS} & inputs.keys():
        return []
    _rename_clashes(network)
    layers = _Layers(vendor, network)
    _add_next_token(layers, layers.output(LOGITS))
    if POSITION in inputs:
        _add_next_position(layers, inputs, capacity - 1)
    return layers.constants


def _add_next_position(layers: _Layers, inputs: dict[str, Any], last_row: int) -> None:
    position = inputs[POSITION]
    if LAST in inputs:  # a prefill: position of the first token, and index of the last real one
        position = layers.elementwise("SUM", position, inputs[LAST])
    following = layers.elementwise("SUM", position, layers.constant(1))
    following = layers.elementwise("MIN", following, layers.constant(last_row))
    layers.mark_output(NEXT_POSITION, following)


def _add_next_token(layers: _Layers, logits: Any) -> None:
    logits = layers.cast(logits, "FLOAT")
    largest, token = layers.largest(logits)  # (batch, 1) each
    layers.mark_output(NEXT_TOKEN, layers.flat(layers.cast(token, "INT64")))
    # log softmax of the largest logit: -log(sum(exp(logits - largest)))
    weights = layers.unary("EXP", layers.elementwise("SUB", logits, largest))
    total = layers.sum(weights)  # (batch,)
    layers.mark_output(SCORE, layers.unary("NEG", layers.unary("LOG", total)))


def _rename_clashes(network: Any) -> None:
    """Renames inner tensors that have the name of a new output."""
    for layer in map(network.get_layer, range(network.num_layers)):
        for tensor in map(layer.get_output, range(layer.num_outputs)):
            if tensor.name in (NEXT_TOKEN, NEXT_POSITION, SCORE):
                tensor.name = f"{tensor.name}_within"


class _Layers:
    """Adds layers to a network; `constants` are the arrays that its constant layers borrow."""

    def __init__(self, vendor: TensorRT, network: Any) -> None:
        self._vendor = vendor
        self._network = network
        self.constants: list[object] = []

    def output(self, name: str) -> Any:
        """Returns an output tensor of the network by its name."""
        tensors = map(self._network.get_output, range(self._network.num_outputs))
        return next(tensor for tensor in tensors if tensor.name == name)

    def mark_output(self, name: str, tensor: Any) -> None:
        """Names a tensor and makes it an output of the network."""
        tensor.name = name
        self._network.mark_output(tensor)

    def constant(self, value: int) -> Any:
        """Returns a constant tensor, (1,) int64, which broadcasts over the batch."""
        array = np.array([value], np.int64)
        self.constants.append(array)
        weights = self._vendor.module.Weights(array)
        return self._network.add_constant((1,), weights).get_output(0)

    def cast(self, tensor: Any, dtype: str) -> Any:
        data_type = self._vendor.member("DataType", dtype)
        if tensor.dtype == data_type:
            return tensor
        return self._network.add_cast(tensor, data_type).get_output(0)

    def elementwise(self, name: str, left: Any, right: Any) -> Any:
        operation = self._vendor.member("ElementWiseOperation", name)
        return self._network.add_elementwise(left, right, operation).get_output(0)

    def unary(self, name: str, tensor: Any) -> Any:
        operation = self._vendor.member("UnaryOperation", name)
        return self._network.add_unary(tensor, operation).get_output(0)

    def sum(self, tensor: Any) -> Any:
        """Returns the sum over the vocabulary, (batch,)."""
        operation = self._vendor.member("ReduceOperation", "SUM")
        return self._network.add_reduce(tensor, operation, _VOCABULARY_AXIS, False).get_output(0)

    def largest(self, tensor: Any) -> tuple[Any, Any]:
        """Returns the largest value of each row and its index, (batch, 1) each."""
        operation = self._vendor.member("TopKOperation", "MAX")
        layer = self._network.add_topk(tensor, operation, 1, _VOCABULARY_AXIS)
        return layer.get_output(0), layer.get_output(1)

    def flat(self, tensor: Any) -> Any:
        """Returns a tensor with a single axis."""
        layer = self._network.add_shuffle(tensor)
        layer.reshape_dims = (-1,)
        return layer.get_output(0)

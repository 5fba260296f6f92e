"""Lets a decoder graph choose the next token itself, so that a loop can stay on the GPU.

A parsed prefill or step graph that returns `logits` gets three more outputs, `(batch,)` each:

next_token     int64    the likeliest token; of equals any one
next_position  int64    where that token goes: the next step's `position`, at most capacity - 1;
                        none in a graph that takes no `position`
score          float32  its log-probability; not finite where the logits are not

The logits stay an output: whoever chooses otherwise reads them, whoever does not binds them to
memory that is never copied to the host. With or without them TensorRT-RTX compiles the same number
of kernels; the three outputs themselves add two (one sequence) or three.

Bind none of them to the memory of `token` or `position`: nothing orders its write behind their
reads. Copy it there after the step, or let two steps with swapped buffers take turns.
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
    """Adds the outputs to a parsed `INetworkDefinition`, if it returns logits for tokens.

    Args:
        vendor: TensorRT, as loaded.
        network: What its parser read.
        capacity: Rows of a cache; positions stay below it.

    Returns:
        What must live until the engine is built: TensorRT reads constants where they lie.
    """
    inputs = {tensor.name: tensor for tensor in map(network.get_input, range(network.num_inputs))}
    outputs = {tensor.name for tensor in map(network.get_output, range(network.num_outputs))}
    if LOGITS not in outputs or not {TOKEN, TOKENS} & inputs.keys():
        return []
    _free_names(network)
    layers = _Layers(vendor, network)
    _choose(layers, layers.output(LOGITS))
    if POSITION in inputs:
        _go_on(layers, inputs, capacity - 1)
    return layers.kept


def _go_on(layers: _Layers, inputs: dict[str, Any], last: int) -> None:
    position = inputs[POSITION]
    if LAST in inputs:  # a prefill: the first token's position, and how many follow it
        position = layers.join("SUM", position, inputs[LAST])
    following = layers.join("SUM", position, layers.constant(1))
    layers.finish(NEXT_POSITION, layers.join("MIN", following, layers.constant(last)))


def _choose(layers: _Layers, logits: Any) -> None:
    logits = layers.cast(logits, "FLOAT")
    best, token = layers.largest(logits)  # (batch, 1) each
    layers.finish(NEXT_TOKEN, layers.flat(layers.cast(token, "INT64")))
    # log softmax of the largest logit: -log(sum(exp(logits - best)))
    weights = layers.unary("EXP", layers.join("SUB", logits, best))
    total = layers.sum(weights)  # (batch,)
    layers.finish(SCORE, layers.unary("NEG", layers.unary("LOG", total)))


def _free_names(network: Any) -> None:
    """Renames inner tensors of the graph that are called as the new outputs will be."""
    for layer in map(network.get_layer, range(network.num_layers)):
        for tensor in map(layer.get_output, range(layer.num_outputs)):
            if tensor.name in (NEXT_TOKEN, NEXT_POSITION, SCORE):
                tensor.name = f"{tensor.name}_within"


class _Layers:
    """Adds layers to a network; every method gives the layer's output tensor."""

    def __init__(self, vendor: TensorRT, network: Any) -> None:
        self._vendor = vendor
        self._network = network
        self.kept: list[object] = []

    def output(self, name: str) -> Any:
        tensors = map(self._network.get_output, range(self._network.num_outputs))
        return next(tensor for tensor in tensors if tensor.name == name)

    def finish(self, name: str, tensor: Any) -> None:
        """Makes a tensor an output of the network."""
        tensor.name = name
        self._network.mark_output(tensor)

    def constant(self, value: int) -> Any:
        """Returns (1,) int64, which broadcasts over the batch."""
        array = np.array([value], np.int64)
        self.kept.append(array)
        weights = self._vendor.module.Weights(array)
        return self._network.add_constant((1,), weights).get_output(0)

    def cast(self, tensor: Any, dtype: str) -> Any:
        wanted = self._vendor.member("DataType", dtype)
        if tensor.dtype == wanted:
            return tensor
        return self._network.add_cast(tensor, wanted).get_output(0)

    def join(self, operation: str, left: Any, right: Any) -> Any:
        wanted = self._vendor.member("ElementWiseOperation", operation)
        return self._network.add_elementwise(left, right, wanted).get_output(0)

    def unary(self, operation: str, tensor: Any) -> Any:
        wanted = self._vendor.member("UnaryOperation", operation)
        return self._network.add_unary(tensor, wanted).get_output(0)

    def sum(self, tensor: Any) -> Any:
        operation = self._vendor.member("ReduceOperation", "SUM")
        return self._network.add_reduce(tensor, operation, _VOCABULARY_AXIS, False).get_output(0)

    def largest(self, tensor: Any) -> tuple[Any, Any]:
        """Returns the largest value of each row and its index, (batch, 1) each."""
        operation = self._vendor.member("TopKOperation", "MAX")
        layer = self._network.add_topk(tensor, operation, 1, _VOCABULARY_AXIS)
        return layer.get_output(0), layer.get_output(1)

    def flat(self, tensor: Any) -> Any:
        layer = self._network.add_shuffle(tensor)
        layer.reshape_dims = (-1,)
        return layer.get_output(0)

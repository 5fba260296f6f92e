"""The derived decoder as a backend in PyTorch, for quick checks without ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid_deploy.export.analysis.binding_time import analyse
from hybrid_deploy.export.lowering.decoder_modules import (
    EncoderGraph,
    PrefillGraph,
    StepGraph,
    head_names,
    split_outputs,
)
from hybrid_deploy.export.model.dynamic_axes import (
    DynamicAxes,
    memory_axes,
)
from hybrid_deploy.export.model.interface import (
    DecodePart,
    EncodePart,
    check_model,
    reference_memory,
)
from hybrid_deploy.export.parity.decode_checks import check_batch, check_causal
from hybrid_deploy.export.plan.plan import DecodePlan
from hybrid_deploy.export.trace.capture import capture_decoder
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from tests.models.zoo.case import Case


def plan_of(
    model: nn.Module, inputs: Mapping[str, Tensor], dynamic: DynamicAxes, max_length: int
) -> DecodePlan:
    """Returns the plan that the exporter derives from a model.

    Args:
        model: module in eval mode.
        inputs: example inputs of the encoder by name, a batch of two or more.
        dynamic: varying axes of the inputs.
        max_length: largest number of tokens of a sequence.
    """
    check_model(model)
    memory = reference_memory(model, tuple(inputs.values()))
    axes = memory_axes(model, inputs, dynamic)
    plan = analyse(capture_decoder(DecodePart(model), memory, axes, max_length))
    check_causal(model, inputs, max_length)
    check_batch(model, inputs, max_length)
    return plan


class EagerBackend:
    """Encoder, prefill and step of a plan as torch modules.

    Args:
        case: inputs, sizes and largest length.
        model: module in eval mode.
    """

    def __init__(self, case: Case, model: nn.Module) -> None:
        self.plan = plan_of(model, case.inputs(2, case.sizes[0]), case.axes(), case.max_length)
        self.encoder = EncoderGraph(EncodePart(model), self.plan)
        self.prefill, self.step = PrefillGraph(self.plan), StepGraph(self.plan)

    def start(self, inputs: Mapping[str, NDArray[Any]]) -> EagerDecoding:
        """Encodes a batch of inputs, and returns its decoding."""
        with torch.no_grad():
            encoded = self.encoder(*(torch.from_numpy(value) for value in inputs.values()))
        return EagerDecoding(self, len(next(iter(inputs.values()))), encoded)


class EagerDecoding:
    """One batch of sequences with its memory and caches."""

    def __init__(self, backend: EagerBackend, batch: int, encoded: tuple[Tensor, ...]) -> None:
        self.batch = batch
        self._backend = backend
        self._memory, self._caches = split_outputs(backend.plan, encoded, batch)
        self._heads = len(head_names(backend.plan))

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        """Decodes several tokens per sequence; returns (batch, vocabulary) float32 logits."""
        return self._run(self._backend.prefill, tokens, position, last)

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        """Decodes one token per sequence; returns (batch, vocabulary) float32 logits."""
        return self._run(self._backend.step, token, position)

    def _run(self, graph: nn.Module, *arrays: IntArray) -> FloatArray:
        tensors = [torch.from_numpy(array) for array in arrays]
        with torch.no_grad():
            outputs = graph(*tensors, *self._memory, *self._caches)
        self._caches = list(outputs[self._heads :])
        rows: FloatArray = outputs[0].numpy()
        return rows

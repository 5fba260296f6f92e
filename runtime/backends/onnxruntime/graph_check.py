"""Decodes one input through all decoder graphs of a variant: they must agree on every token.

Short prompts and greedy decoding skip the prefill graph and the beam step, and where the beam step
can replace the step, the step is not even loaded. A fault in one of them would be found by the
first user of a longer prompt, of a beam search, or of a backend that runs the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BundleError
from hybrid_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from hybrid_deploy.runtime.backends.onnxruntime.decoding import OnnxRuntimeDecoding
from hybrid_deploy.runtime.backends.onnxruntime.encoded_batch import OnnxRuntimeEncodedBatch
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.backends.registry import BackendOptions

_MOST_TOKENS = 64
"""Longest sequence that is decoded by every graph; a fault of one shows within far fewer tokens."""

_PREFILLS = 4
"""Number of prompts, of different lengths, that go through the prefill graph."""

_FLOAT_TIE = 1e-3
_QUANTIZED_TIE = 0.05
"""Largest difference of two logits, as a share of the largest, between which graphs may choose.

Graphs sum in different orders, and a quantized prefill may have one scale for all its tokens.
"""


def check_decoder_graphs(
    bundle: Bundle, variant: str, inputs: Mapping[str, NDArray[Any]], tokens: Sequence[int]
) -> None:
    """Checks that the decoder graphs of a variant choose the same tokens on the CPU.

    Args:
        bundle: the bundle.
        variant: name of the variant.
        inputs: the encoder's inputs by name, batch first; the same input in every row.
        tokens: a sequence that the graphs read, at least one token.

    Raises:
        BundleError: a file is missing or has changed, holds another graph than the manifest says,
            or graphs choose different tokens.
        BackendError: ONNX Runtime cannot load or run a graph.
    """
    backend = OnnxRuntimeBackend(bundle, variant, BackendOptions(), complete=True)
    read = np.array(tokens[: min(_MOST_TOKENS, backend.capacity)], np.int64)
    is_float = bundle.variant(variant).precision.decoder.startswith("fp32")
    step = _StepGraph(bundle, variant, _FLOAT_TIE if is_float else _QUANTIZED_TIE)
    encoded = backend.encode(inputs)
    expected = _logits_by_step(encoded.start(), read)
    if backend.prefill_session is not None:
        _check_prefill(encoded, read, expected, step)
    if backend.beam_session is not None and backend.fixed_batch is None:
        beams = _logits_by_step(encoded.start().expand_beams(2), read)
        for count, (logits, of_step) in enumerate(zip(beams, expected, strict=True), start=1):
            step.check(GraphRole.BEAM_STEP, logits, np.repeat(of_step, 2, axis=0), count)


@dataclass(frozen=True)
class _StepGraph:
    """The step graph of a variant, which others are compared with."""

    bundle: Bundle
    variant: str
    tie: float  # how close two logits are that tie

    def check(self, role: GraphRole, logits: FloatArray, expected: FloatArray, count: int) -> None:
        """Checks the logits of another graph, (batch, vocabulary), after so many tokens."""
        for row, of_step in zip(logits, expected, strict=True):
            token, token_of_step = int(row.argmax()), int(of_step.argmax())
            lead = float(of_step[token_of_step] - of_step[token])
            if not (np.isfinite(row).all() and lead <= self.tie * float(abs(of_step).max())):
                path = self.bundle.graph_path(self.variant, role)
                raise BundleError(
                    f"{path} does not agree with the step graph: after {count} tokens it chooses "
                    f"token {token}, the step {token_of_step}; export or quantize it again"
                )


def _logits_by_step(decoding: OnnxRuntimeDecoding, tokens: IntArray) -> list[FloatArray]:
    """Returns the logits (batch, vocabulary) after each token."""
    every, logits = np.ones(decoding.batch, np.int64), []
    for position, token in enumerate(tokens.tolist()):
        logits.append(decoding.step(every * token, every * position).copy())
    return logits


def _check_prefill(
    encoded: OnnxRuntimeEncodedBatch,
    tokens: IntArray,
    expected: Sequence[FloatArray],
    step: _StepGraph,
) -> None:
    """Compares the logits after prompts, and after one more token, which reads the caches."""
    every = np.ones(encoded.batch, np.int64)
    for length in sorted(
        {1 + (len(tokens) - 1) * part // _PREFILLS for part in range(1, _PREFILLS + 1)}
    ):
        decoding = encoded.start()
        decoding.shortest_prefill = 0
        prompts = np.tile(tokens[:length], (encoded.batch, 1))
        logits = decoding.prefill(prompts, every * 0, every * (length - 1))
        step.check(GraphRole.PREFILL, logits, expected[length - 1], length)
        if length < len(tokens):
            logits = decoding.step(every * tokens[length], every * length)
            step.check(GraphRole.PREFILL, logits, expected[length], length + 1)

"""A decoder step by step on the host, and ways of decoding to compare with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.contract import LAST, LOGITS, POSITION, TOKEN, TOKENS, next_cache
from hybrid_deploy.runtime.backends.gpu.decoding import DeviceDecoding
from hybrid_deploy.runtime.backends.prefill_by_steps import prefill_by_steps
from hybrid_deploy.runtime.backends.protocol import (
    Decoding,
    FloatArray,
    GeneratesOnDevice,
    IntArray,
)
from hybrid_deploy.runtime.generation.sequences import Limits, SequenceResult
from hybrid_deploy.runtime.generation.token_loop import decode_greedily
from tests.closeness import largest
from tests.fakes.engine import STATE, Arrays, Decoder

Prompts = Sequence[Sequence[int]]


class HostDecoding:
    """The decoding of a batch by a `Decoder`, without any device.

    Attributes:
        batch: number of sequences.
        caches: caches or recurrent state by name, as the next run reads them.
        largest_logit: largest logit of all runs so far; tolerances of scores are shares of it.
    """

    def __init__(self, decoder: Decoder, image: NDArray[np.float32]) -> None:
        self.batch = len(image)
        self._decoder = decoder
        self._memory = decoder.encode({"image": image})
        self.caches: Arrays = {
            name: np.zeros((self.batch, *shape[1:]), np.float32)
            for name, shape in decoder.cache_shapes.items()
        }
        self._previous_caches = self.caches
        self.largest_logit = 0.0

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        if self._decoder.form == "recurrent":
            return prefill_by_steps(self.step, self._undo_step, tokens, position, last)
        inputs = {TOKENS: tokens, POSITION: position, LAST: last}
        return self._run(self._decoder.prefill, inputs)

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        return self._run(self._decoder.step, {TOKEN: token, POSITION: position})

    def reorder(self, rows: IntArray) -> None:
        self.caches = {name: cache[rows] for name, cache in self.caches.items()}

    def _run(self, graph: Callable[[Arrays], Arrays], inputs: Arrays) -> FloatArray:
        results = graph({**inputs, **self._memory, **self.caches})
        self._previous_caches = self.caches
        self.caches = {name: results[next_cache(name)] for name in self.caches}
        logits: FloatArray = results[LOGITS]
        self.largest_logit = max(self.largest_logit, largest(logits))
        return logits

    def _undo_step(self, rows: IntArray) -> None:
        self.caches[STATE][rows] = self._previous_caches[STATE][rows]


def decode_on_host(
    decoder: Decoder, image: NDArray[np.float32], prompts: Prompts, limits: Limits
) -> list[SequenceResult]:
    """Decodes greedily on the host, with scores."""
    return greedy_sequences(HostDecoding(decoder, image), prompts, limits)


def decode_on_device(
    decoding: DeviceDecoding, prompts: Prompts, limits: Limits
) -> list[SequenceResult]:
    """Decodes greedily, with scores; the device chooses all tokens but the first."""
    assert isinstance(decoding, GeneratesOnDevice)
    return greedy_sequences(decoding, prompts, limits)


def decode_step_by_step(
    decoding: Decoding, prompts: Prompts, limits: Limits
) -> list[SequenceResult]:
    """Decodes greedily, with scores; the host chooses each token, even if the device could."""
    return greedy_sequences(_StepsOnly(decoding), prompts, limits)


def greedy_sequences(decoding: Decoding, prompts: Prompts, limits: Limits) -> list[SequenceResult]:
    """Decodes greedily, with scores; where the decoding can, the device chooses the tokens."""
    return list(decode_greedily(decoding, prompts, limits, scores=True).sequences)


class _StepsOnly:
    """A decoding without `step_blocks`."""

    def __init__(self, decoding: Decoding) -> None:
        self.batch, self.prefill, self.step = decoding.batch, decoding.prefill, decoding.step

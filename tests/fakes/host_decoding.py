"""What the loops on a device are compared with: the same decoder step by step on the host."""

from __future__ import annotations

from collections.abc import Sequence

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
    """A decoder without any device.

    Attributes:
        largest_logit: of all so far, by which the roundings of scores are measured.
    """

    def __init__(self, decoder: Decoder, image: NDArray[np.float32]) -> None:
        self.batch = len(image)
        self._decoder = decoder
        self._memory = decoder.encode({"image": image})
        self.caches: Arrays = {
            name: np.zeros((self.batch, *shape[1:]), np.float32)
            for name, shape in decoder.cache_shapes.items()
        }
        self._before = self.caches
        self.largest_logit = 0.0

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        if self._decoder.form == "recurrent":
            return prefill_by_steps(self.step, self._take_back, tokens, position, last)
        return self._run("prefill", {TOKENS: tokens, POSITION: position, LAST: last})

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        return self._run("step", {TOKEN: token, POSITION: position})

    def reorder(self, rows: IntArray) -> None:
        self.caches = {name: cache[rows] for name, cache in self.caches.items()}

    def _run(self, graph: str, given: Arrays) -> FloatArray:
        results = getattr(self._decoder, graph)({**given, **self._memory, **self.caches})
        self._before = self.caches
        self.caches = {name: results[next_cache(name)] for name in self.caches}
        logits: FloatArray = results[LOGITS]
        self.largest_logit = max(self.largest_logit, largest(logits))
        return logits

    def _take_back(self, rows: IntArray) -> None:
        self.caches[STATE][rows] = self._before[STATE][rows]


def by_host(
    decoder: Decoder, image: NDArray[np.float32], prompts: Prompts, limits: Limits
) -> list[SequenceResult]:
    """Decodes greedily, each token chosen by the host."""
    return greedily(HostDecoding(decoder, image), prompts, limits)


def ahead(decoding: DeviceDecoding, prompts: Prompts, limits: Limits) -> list[SequenceResult]:
    """Decodes greedily, all but the first token chosen by the device."""
    assert isinstance(decoding, GeneratesOnDevice)
    return greedily(decoding, prompts, limits)


def stepped(decoding: Decoding, prompts: Prompts, limits: Limits) -> list[SequenceResult]:
    """Decodes greedily, each token chosen by the host, wherever the decoding runs."""
    return greedily(_Stepped(decoding), prompts, limits)


def greedily(decoding: Decoding, prompts: Prompts, limits: Limits) -> list[SequenceResult]:
    """Decodes greedily, with scores."""
    return list(decode_greedily(decoding, prompts, limits, scores=True).sequences)


class _Stepped:
    """A decoding that makes nothing ahead."""

    def __init__(self, decoding: Decoding) -> None:
        self.batch, self.prefill, self.step = decoding.batch, decoding.prefill, decoding.step

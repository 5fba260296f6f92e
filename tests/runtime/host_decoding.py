"""What the loops on a device are compared with: the same decoder step by step on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.contract import LAST, LOGITS, POSITION, TOKEN, TOKENS, next_cache
from hybrid_deploy.runtime.backend import FloatArray, IntArray, RunsAhead
from hybrid_deploy.runtime.device_decoding import DeviceDecoding
from hybrid_deploy.runtime.generate import Decoded, Limits, decode_greedily
from hybrid_deploy.runtime.prompt_steps import prefill_by_steps
from tests.runtime.fake_engine import STATE, Arrays, Decoder

Prompts = Sequence[Sequence[int]]


class HostDecoding:
    """A decoder without any device."""

    def __init__(self, decoder: Decoder, image: NDArray[np.float32]) -> None:
        self.batch = len(image)
        self._decoder = decoder
        self._memory = decoder.encode({"image": image})
        self.caches: Arrays = {
            name: np.zeros((self.batch, *shape[1:]), np.float32)
            for name, shape in decoder.cache_shapes.items()
        }
        self._before = self.caches

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
        return logits

    def _take_back(self, rows: IntArray) -> None:
        self.caches[STATE][rows] = self._before[STATE][rows]


def by_host(
    decoder: Decoder, image: NDArray[np.float32], prompts: Prompts, limits: Limits
) -> list[Decoded]:
    """Decodes greedily, each token chosen by the host."""
    return list(decode_greedily(HostDecoding(decoder, image), prompts, limits).sequences)


def ahead(decoding: DeviceDecoding, prompts: Prompts, limits: Limits) -> list[Decoded]:
    """Decodes greedily, all but the first token chosen by the device."""
    assert isinstance(decoding, RunsAhead)
    one = Limits(limits.end_tokens, limits.pad_token, 0, limits.capacity)
    rows = [_Row(tuple(p), limits) for p in prompts]
    for row, first in zip(rows, decode_greedily(decoding, prompts, one).sequences, strict=True):
        row.take(first.tokens[0], first.scores[0])
    token = np.array([row.tokens[-1] for row in rows], np.int64)
    position = np.array([len(row.prompt) for row in rows], np.int64)
    blocks = decoding.ahead(token, position)
    while any(row.finish is None for row in rows):
        block = next(blocks)
        for tokens, scores in zip(block.tokens, block.scores, strict=True):
            for index, row in enumerate(rows):
                row.take(int(tokens[index]), float(scores[index]))
    blocks.close()  # type: ignore[attr-defined]
    return [row.decoded() for row in rows]


class _Row:
    def __init__(self, prompt: tuple[int, ...], limits: Limits) -> None:
        self.prompt, self.limits = prompt, limits
        self.tokens: list[int] = []
        self.scores: list[float] = []
        self.finish: str | None = None

    def take(self, token: int, score: float) -> None:
        if self.finish is not None:
            return
        self.tokens.append(token)
        self.scores.append(score)
        length = len(self.prompt) + len(self.tokens)
        if token in self.limits.end_tokens:
            self.finish = "end"
        elif length >= self.limits.max_length or length > self.limits.capacity:
            self.finish = "length"

    def decoded(self) -> Decoded:
        return Decoded(tuple(self.tokens), tuple(self.scores), self.finish)  # type: ignore[arg-type]

"""Decodings made of numpy: each next token is the last one plus 1, up to a chosen end."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray, LaunchMode, StepBlock

END, PAD, VOCABULARY = 2, 0, 50
LARGEST_LOGIT = 5.0


class CountingDecoding:
    """The token after t is t + 1; after `stop[row]` it is END.

    Attributes:
        cache: (batch, capacity), the token at every position; -1 where there is none.
        steps: number of calls of `step`.
        batches: number of sequences of every step so far.
    """

    def __init__(self, stop: list[int], capacity: int = 16) -> None:
        self.batch = len(stop)
        self.stop = stop
        self.cache = np.full((self.batch, capacity), -1)
        self.steps = 0
        self.batches: list[int] = []

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        for row, (prompt, start, index) in enumerate(zip(tokens, position, last, strict=True)):
            self.cache[row, start : start + index + 1] = prompt[: index + 1]
        return self.logits(tokens[np.arange(self.batch), last])

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        self.cache[np.arange(self.batch), position] = token
        self.steps += 1
        self.batches.append(self.batch)
        return self.logits(token)

    def logits(self, token: IntArray) -> FloatArray:
        following = np.where(token >= np.array(self.stop), END, token + 1)
        logits = np.zeros((self.batch, VOCABULARY), np.float32)
        logits[np.arange(self.batch), following] = LARGEST_LOGIT
        return logits


class ReorderableCounting(CountingDecoding):
    """A counting decoding whose sequences can be reordered, dropped and copied.

    Attributes:
        moves: rows of every `reorder`; this list and `batches` are shared with the decodings that
            `select` returns.
    """

    resizable = True

    def __init__(self, stop: list[int], capacity: int = 16) -> None:
        super().__init__(stop, capacity)
        self.moves: list[list[int]] = []

    def reorder(self, rows: IntArray) -> None:
        self.moves.append(rows.tolist())
        self.cache = self.cache[rows]

    def select(self, rows: IntArray) -> ReorderableCounting:
        chosen = type(self)([self.stop[row] for row in rows], self.cache.shape[1])
        chosen.cache, chosen.batches, chosen.moves = self.cache[rows], self.batches, self.moves
        return chosen

    def expand_beams(self, count: int) -> ReorderableCounting:
        return self.select(np.repeat(np.arange(self.batch), count))


class OnDeviceCounting(ReorderableCounting):
    """A counting decoding that also generates blocks of steps, as a device does.

    Attributes:
        calls: tokens and positions of every call of `step_blocks`.
        blocks: number of blocks so far.
        closed: number of generators that were closed or ran to their end.
    """

    reason: str | None = "it counts"

    def __init__(
        self, stop: list[int], capacity: int = 16, block: int = 3, max_blocks: int = 99
    ) -> None:
        super().__init__(stop, capacity)
        self.block, self.max_blocks = block, max_blocks
        self.calls: list[tuple[list[int], list[int]]] = []
        self.closed = 0
        self.blocks = 0

    def select(self, rows: IntArray) -> OnDeviceCounting:
        chosen = super().select(rows)
        assert isinstance(chosen, OnDeviceCounting)
        chosen.block, chosen.max_blocks, chosen.calls = self.block, self.max_blocks, self.calls
        return chosen

    def step_blocks(self, token: IntArray, position: IntArray) -> Generator[StepBlock, None, None]:
        self.calls.append((token.tolist(), position.tolist()))
        try:
            for _ in range(self.max_blocks):
                tokens, scores = [], []
                for _ in range(self.block):
                    logits = self.logits(token)
                    token = logits.argmax(-1)
                    tokens.append(token)
                    scores.append(logits.max(-1) - np.log(np.exp(logits).sum(-1)))
                self.blocks += 1
                run: LaunchMode = "graph" if self.reason is None else "enqueue"
                yield StepBlock(np.stack(tokens), np.stack(scores), run, self.reason)
        finally:
            self.closed += 1

"""The generation loop: tokens from a decoding, one step at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import numpy as np

from hybrid_deploy.runtime.backends.protocol import (
    Decoding,
    FloatArray,
    GeneratesOnDevice,
    IntArray,
    ReorderableDecoding,
    StepBlock,
)
from hybrid_deploy.runtime.generation.logits import check_largest, log_probabilities, prompt_logits
from hybrid_deploy.runtime.generation.logits_processors import Processor
from hybrid_deploy.runtime.generation.sampling import Sampling
from hybrid_deploy.runtime.generation.sequences import (
    BatchResult,
    Cancellation,
    FinishReason,
    Limits,
    Row,
    SequenceResult,
    begin_rows,
)
from hybrid_deploy.runtime.generation.settings import DecodingSettings
from hybrid_deploy.runtime.generation.two_stage_argmax import TwoStageArgmax


def decode_greedily(
    decoding: Decoding,
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    processors: Sequence[Processor] = (),
    *,
    scores: bool = False,
) -> BatchResult:
    """Continues every prompt with the likeliest token, until all have ended.

    Args:
        decoding: a started batch.
        prompts: for each sequence its first tokens, at least one.
        limits: when a sequence ends.
        processors: what changes the logits first, in this order.
        scores: whether to give the probability of every token.

    Raises:
        UsageError: a prompt is empty or too long, or there is not one for each sequence.
        CapacityError: a prompt is longer than the caches.
        BackendError: the logits are not numbers, or the processors leave no token.
    """
    return TokenLoop(
        decoding, prompts, DecodingSettings(limits, tuple(processors), scores=scores)
    ).run()


class TokenLoop:
    """The sequences of one batch, which grow by a token each in every step.

    Attributes:
        rows: the sequences, in the order of their prompts.

    Raises:
        UsageError: a prompt is empty or too long, or there is not one for each sequence.
        CapacityError: a prompt is longer than the caches.
    """

    def __init__(
        self,
        decoding: Decoding,
        prompts: Sequence[Sequence[int]],
        rules: DecodingSettings,
        control: Cancellation | None = None,
    ) -> None:
        self.rows = begin_rows(prompts, decoding.batch, rules.limits)
        self._decoding = decoding
        self._rules = rules
        self._control = control
        self._ends = frozenset(rules.limits.end_tokens)
        self._slots = list(self.rows)
        self._going = np.ones(len(self.rows), np.int64)
        self._left = len(self.rows)
        self._token = np.zeros(len(self.rows), np.int64)
        self._position = np.array([len(row.prompt) - 1 for row in self.rows], np.int64)
        self._places = np.arange(len(self.rows))
        self._seconds: list[float] = []
        self._notes: dict[str, None] = {}
        self._rough = TwoStageArgmax.of(decoding, rules)
        self._resizable = isinstance(decoding, ReorderableDecoding) and decoding.resizable
        if rules.stop is not None:
            for row in self.rows:
                row.reading = rules.stop.begin
        if rules.sampling is not None:
            generators = rules.sampling.generators(len(self.rows))
            for row, generator in zip(self.rows, generators, strict=True):
                row.random = generator

    def run(self) -> BatchResult:
        """Decodes until all sequences have ended.

        Raises:
            BackendError: the logits are not numbers, or the processors leave no token.
        """
        for _ in self.steps():
            pass
        return self.batch_result()

    def steps(self) -> Iterator[None]:
        """Decodes until all sequences have ended; yields after every token of the batch.

        Raises:
            BackendError: the logits are not numbers, or the processors leave no token.
        """
        if self._halted():
            return
        began = time.perf_counter()
        prompts = [row.prompt for row in self.rows]
        self._take(prompt_logits(self._decoding, prompts, rough=self._rough is not None))
        self._seconds.append(time.perf_counter() - began)
        yield
        if not self._rules.processors and self._rules.sampling is None:
            yield from self._run_ahead()
        while self._left and not self._halted():
            began = time.perf_counter()
            if self._mostly_finished():
                self._drop_finished()
            self._take(self._step())
            self._seconds.append(time.perf_counter() - began)
            yield

    def _step(self) -> FloatArray:
        if self._rough is None:
            return self._decoding.step(self._token, self._position)
        return self._rough.decoding.step_approximate(self._token, self._position)

    def batch_result(self) -> BatchResult:
        """Returns what became of the batch."""
        milliseconds = [seconds * 1e3 for seconds in self._seconds]
        return BatchResult(
            sequences=tuple(self._decoded(row) for row in self.rows),
            first_ms=milliseconds[0] if milliseconds else 0.0,
            step_ms=tuple(milliseconds[1:]),
            notes=tuple(self._notes),
        )

    def _decoded(self, row: Row) -> SequenceResult:
        scores = tuple(row.scores) if self._rules.scores else None
        return SequenceResult(tuple(row.tokens), scores, row.finish or "cancelled", row.text)

    def _halted(self) -> bool:
        """Ends the sequences that still grow if nobody wants more of them."""
        reason = None if self._control is None else self._control.reason()
        if reason is not None:
            for row in self._slots:
                row.finish = row.finish or reason
            self._left = 0
        return reason is not None

    def _take(self, logits: FloatArray) -> None:
        """Chooses the next token of every sequence."""
        given = logits
        if self._rules.processors:
            logits = self._processed(logits)
        if self._rough is not None:
            tokens = self._settled(self._rough, given, logits)
        elif self._rules.sampling is None:
            tokens = logits.argmax(-1)
        else:
            tokens = self._drawn(logits, self._rules.sampling)
        values = logits[self._places, tokens]
        if not all(map(math.isfinite, values.tolist())):
            self._check(values)
        scores = log_probabilities(logits, values).tolist() if self._rules.scores else None
        self._append(tokens, scores)

    def _settled(
        self, choice: TwoStageArgmax, rough: FloatArray, processed: FloatArray
    ) -> IntArray:
        """Chooses the likeliest tokens from rough logits."""
        margins = choice.error_bounds()
        if not all(map(math.isfinite, margins)):
            self._check(np.array(margins, np.float32))
        return choice.choose(rough, processed, self._slots, margins)

    def _append(self, tokens: IntArray, scores: list[float] | None) -> None:
        """Appends one token to every sequence that grows."""
        ended, ids = False, tokens.tolist()
        self._position += self._going  # a finished sequence stays where it is
        for slot, row in enumerate(self._slots):
            if row.finish is not None:
                continue
            row.add(ids[slot])
            if scores is not None:
                row.scores.append(scores[slot])
            row.finish = self._finish(row)
            if row.finish is not None:
                ended, self._going[slot] = True, 0
                self._left -= 1
        self._token[:] = tokens
        if ended:
            np.minimum(self._position, self._rules.limits.capacity - 1, out=self._position)
        if self._left < len(self._slots):
            self._token[self._going == 0] = self._rules.limits.pad_token

    def _finish(self, row: Row) -> FinishReason | None:
        """Returns why the newest token ends a sequence; None if it does not."""
        if row.tokens[-1] in self._ends:
            return "end"
        if self._rules.stop is not None:
            assert row.reading is not None
            searched = len(row.reading.text)
            row.reading = row.reading.advanced(row.tokens[-1])
            place = self._rules.stop.place(row.reading.text, searched)
            if place is not None:
                row.text = row.reading.text[:place]
                return "stop"
        return row.limit if len(row.tokens) >= row.most else None

    def _processed(self, logits: FloatArray) -> FloatArray:
        """Returns the logits after the processors."""
        self._check(logits.max(-1))
        logits = logits.copy()  # the backend owns them
        for values, row in zip(logits, self._slots, strict=True):
            if row.finish is None:
                for process in self._rules.processors:
                    process(values, row.sequence, len(row.prompt))
        return logits

    def _drawn(self, logits: FloatArray, sampling: Sampling) -> IntArray:
        """Draws a token for every sequence that grows."""
        self._check(logits.max(-1))
        tokens = np.zeros(len(self._slots), np.int64)
        for slot, row in enumerate(self._slots):
            if row.finish is None:
                assert row.random is not None
                tokens[slot] = sampling.draw(logits[slot], row.random)
        return tokens

    def _check(self, largest: FloatArray) -> None:
        """Refuses logits with NaN or infinity, or without a token that may come.

        Args:
            largest: (slots,), the largest logit of each sequence.
        """
        for row, value in zip(self._slots, largest.tolist(), strict=True):
            if row.finish is None:
                check_largest(value, f"sequence {row.index} at step {len(row.tokens)}")

    def _mostly_finished(self) -> bool:
        """Returns whether finished sequences cost half of the work or more, and need not."""
        return self._resizable and 2 * self._left <= len(self._slots)

    def _drop_finished(self) -> None:
        """Goes on with the sequences that grow alone."""
        assert isinstance(self._decoding, ReorderableDecoding)
        kept = np.flatnonzero(self._going)
        self._decoding = self._decoding.select(kept)
        self._rough = TwoStageArgmax.of(self._decoding, self._rules)
        self._slots = [self._slots[slot] for slot in kept]
        self._token, self._position = self._token[kept], self._position[kept]
        self._going, self._places = np.ones(len(kept), np.int64), np.arange(len(kept))

    def _run_ahead(self) -> Iterator[None]:
        """Takes tokens from a device that makes them on its own, as long as it does."""
        while self._left and isinstance(self._decoding, GeneratesOnDevice) and not self._halted():
            blocks = self._decoding.step_blocks(self._token.copy(), self._position.copy())
            began, ran_out = time.perf_counter(), True
            try:
                for block in blocks:
                    yield from self._take_block(block, time.perf_counter() - began)
                    began = time.perf_counter()
                    if not self._left or self._mostly_finished() or self._halted():
                        ran_out = False
                        break
            finally:
                getattr(blocks, "close", lambda: None)()
            if ran_out:
                return
            if self._left and self._mostly_finished():
                self._drop_finished()

    def _take_block(self, block: StepBlock, seconds: float) -> Iterator[None]:
        """Appends a block of tokens, as far as there are sequences that grow."""
        if block.reason is not None:
            self._notes[f"steps were launched one by one: {block.reason}"] = None
        count = len(block.tokens)
        for tokens, scores in zip(block.tokens, block.scores, strict=True):
            if not self._left or self._halted():
                return
            self._check(scores)
            self._append(tokens, scores.tolist() if self._rules.scores else None)
            self._seconds.append(seconds / count)
            yield

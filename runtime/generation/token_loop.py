"""The token loop of greedy decoding and sampling: one token per sequence in every step."""

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
from hybrid_deploy.runtime.deadline import StoppedError, Until
from hybrid_deploy.runtime.generation.logits import (
    check_largest_logit,
    log_probabilities,
    prompt_logits,
)
from hybrid_deploy.runtime.generation.logits_processors import LogitsFunction, Processor
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
    processors: Sequence[Processor | LogitsFunction] = (),
    *,
    scores: bool = False,
) -> BatchResult:
    """Continues every prompt with the most probable token, until all sequences have ended.

    Args:
        decoding: a started batch.
        prompts: the first tokens of each sequence, at least one.
        limits: end tokens and largest lengths of a sequence.
        processors: functions that change the logits before a token is chosen, in this order.
        scores: whether results contain the log-probability of every token.

    Raises:
        UsageError: a prompt is empty or too long, or the number of prompts is not the number of
            sequences.
        CapacityError: a prompt is longer than the caches.
        BackendError: the logits are not finite, or the processors exclude all tokens.
    """
    return TokenLoop(
        decoding, prompts, DecodingSettings(limits, tuple(processors), scores=scores)
    ).run()


class TokenLoop:
    """Decodes one batch: every step appends a token to every sequence that has not ended.

    Args:
        decoding: a started batch.
        prompts: the first tokens of each sequence, at least one.
        settings: how tokens are chosen, and when a sequence ends; without beams.
        cancellation: ends the decoding early; None decodes to the end.

    Attributes:
        rows: the sequences, in the order of their prompts.

    Raises:
        UsageError: a prompt is empty or too long, or the number of prompts or seeds is not the
            number of sequences.
        CapacityError: a prompt is longer than the caches.
    """

    def __init__(
        self,
        decoding: Decoding,
        prompts: Sequence[Sequence[int]],
        settings: DecodingSettings,
        cancellation: Cancellation | None = None,
    ) -> None:
        self.rows = begin_rows(prompts, decoding.batch, settings.limits)
        self._decoding = decoding
        self._settings = settings
        self._cancellation = cancellation
        self._until_deadline = Until(None if cancellation is None else cancellation.deadline)
        self._end_tokens = frozenset(settings.limits.end_tokens)
        # the rows that the decoding still has, as its batch may become smaller, and the arrays with
        # one entry for each of these rows
        self._batch_rows = list(self.rows)
        self._active = np.ones(len(self.rows), np.int64)  # 1 until the row ends, then 0
        self._active_count = len(self.rows)
        self._token = np.zeros(len(self.rows), np.int64)
        self._position = np.array([len(row.prompt) - 1 for row in self.rows], np.int64)
        self._indices = np.arange(len(self.rows))
        self._step_seconds: list[float] = []
        self._notes: dict[str, None] = {}
        self._two_stage = TwoStageArgmax.of(decoding, settings)
        self._resizable = isinstance(decoding, ReorderableDecoding) and decoding.resizable
        if settings.stop is not None:
            for row in self.rows:
                row.detokenizer = settings.stop.empty
        if settings.sampling is not None:
            generators = settings.sampling.generators(len(self.rows))
            for row, generator in zip(self.rows, generators, strict=True):
                row.random = generator

    def run(self) -> BatchResult:
        """Decodes until all sequences have ended; returns their results.

        Raises:
            BackendError: the logits are not finite, or the processors exclude all tokens.
        """
        for _ in self.steps():
            pass
        return self.batch_result()

    def steps(self) -> Iterator[None]:
        """Decodes until all sequences have ended; yields after every step of the batch.

        Raises:
            BackendError: the logits are not finite, or the processors exclude all tokens.
        """
        try:
            yield from self._steps()
        except StoppedError:  # the tokens of the steps before stay
            self._is_cancelled()

    def _steps(self) -> Iterator[None]:
        if self._is_cancelled():
            return
        start = time.perf_counter()
        with self._until_deadline:
            self._choose_tokens(self._first_logits())
        self._step_seconds.append(time.perf_counter() - start)
        yield
        if not self._settings.processors and self._settings.sampling is None:
            yield from self._steps_on_device()
        while self._active_count and not self._is_cancelled():
            start = time.perf_counter()
            if self._should_shrink():
                self._drop_finished()
            with self._until_deadline:
                self._choose_tokens(self._step())
            self._step_seconds.append(time.perf_counter() - start)
            yield

    def _first_logits(self) -> FloatArray:
        prompts = [row.prompt for row in self.rows]
        approximate = self._two_stage is not None
        return prompt_logits(self._decoding, prompts, approximate=approximate)

    def _step(self) -> FloatArray:
        if self._two_stage is None:
            return self._decoding.step(self._token, self._position)
        return self._two_stage.decoding.step_approximate(self._token, self._position)

    def batch_result(self) -> BatchResult:
        """Returns the results so far; a sequence that has not ended counts as cancelled."""
        milliseconds = [seconds * 1e3 for seconds in self._step_seconds]
        return BatchResult(
            sequences=tuple(self._sequence_result(row) for row in self.rows),
            first_ms=milliseconds[0] if milliseconds else 0.0,
            step_ms=tuple(milliseconds[1:]),
            notes=tuple(self._notes),
        )

    def _sequence_result(self, row: Row) -> SequenceResult:
        scores = tuple(row.scores) if self._settings.scores else None
        return SequenceResult(tuple(row.tokens), scores, row.finish or "cancelled", row.text)

    def _is_cancelled(self) -> bool:
        """Returns whether the decoding must end early; ends all sequences if so."""
        reason = None if self._cancellation is None else self._cancellation.reason()
        if reason is not None:
            for row in self._batch_rows:
                row.finish = row.finish or reason
            self._active_count = 0
        return reason is not None

    def _choose_tokens(self, logits: FloatArray) -> None:
        """Chooses the next token of every sequence and appends it."""
        processed = self._processed(logits) if self._settings.processors else logits
        if self._two_stage is not None:
            tokens = self._two_stage_tokens(self._two_stage, logits, processed)
        elif self._settings.sampling is None:
            tokens = processed.argmax(-1)
        else:
            tokens = self._sampled_tokens(processed, self._settings.sampling)
        values = processed[self._indices, tokens]
        if not all(map(math.isfinite, values.tolist())):
            self._check_finite(values)
        scores = log_probabilities(processed, values).tolist() if self._settings.scores else None
        self._append(tokens, scores)

    def _two_stage_tokens(
        self, two_stage: TwoStageArgmax, approximate: FloatArray, processed: FloatArray
    ) -> IntArray:
        """Returns the most probable token of each row, from approximate logits."""
        error_bounds = two_stage.error_bounds()
        if not all(map(math.isfinite, error_bounds)):
            self._check_finite(np.array(error_bounds, np.float32))
        return two_stage.choose(approximate, processed, self._batch_rows, error_bounds)

    def _append(self, tokens: IntArray, scores: list[float] | None) -> None:
        """Appends one token to every sequence that has not ended."""
        any_ended, ids = False, tokens.tolist()
        self._position += self._active  # an ended sequence stays at its position
        for index, row in enumerate(self._batch_rows):
            if row.finish is not None:
                continue
            row.add(ids[index])
            if scores is not None:
                row.scores.append(scores[index])
            row.finish = self._finish_reason(row)
            if row.finish is not None:
                any_ended, self._active[index] = True, 0
                self._active_count -= 1
        self._token[:] = tokens
        if any_ended:
            np.minimum(self._position, self._settings.limits.capacity - 1, out=self._position)
        if self._active_count < len(self._batch_rows):
            self._token[self._active == 0] = self._settings.limits.pad_token

    def _finish_reason(self, row: Row) -> FinishReason | None:
        """Returns why the newest token ends a sequence; None if it does not."""
        if row.tokens[-1] in self._end_tokens:
            return "end"
        if self._settings.stop is not None:
            assert row.detokenizer is not None
            searched = len(row.detokenizer.text)
            row.detokenizer = row.detokenizer.after(row.tokens[-1])
            index = self._settings.stop.find(row.detokenizer.text, searched)
            if index is not None:
                row.text = row.detokenizer.text[:index]
                return "stop"
        return row.limit if len(row.tokens) >= row.max_tokens else None

    def _processed(self, logits: FloatArray) -> FloatArray:
        """Returns the logits after the processors."""
        self._check_finite(logits.max(-1))
        logits = logits.copy()  # the backend owns them
        for values, row in zip(logits, self._batch_rows, strict=True):
            if row.finish is None:
                for processor in self._settings.processors:
                    processor(values, row.sequence, len(row.prompt))
        return logits

    def _sampled_tokens(self, logits: FloatArray, sampling: Sampling) -> IntArray:
        """Returns a sampled token for each row; 0 for rows that have ended."""
        self._check_finite(logits.max(-1))
        tokens = np.zeros(len(self._batch_rows), np.int64)
        for index, row in enumerate(self._batch_rows):
            if row.finish is None:
                assert row.random is not None
                tokens[index] = sampling.draw(logits[index], row.random)
        return tokens

    def _check_finite(self, values: FloatArray) -> None:
        """Checks one logit, score or error bound of each row that has not ended, (rows,)."""
        for row, value in zip(self._batch_rows, values.tolist(), strict=True):
            if row.finish is None:
                check_largest_logit(value, f"sequence {row.index} at step {len(row.tokens)}")

    def _should_shrink(self) -> bool:
        """Returns whether ended sequences are half of the batch or more and can be dropped."""
        return self._resizable and 2 * self._active_count <= len(self._batch_rows)

    def _drop_finished(self) -> None:
        """Makes the batch smaller: only sequences that have not ended stay in it."""
        assert isinstance(self._decoding, ReorderableDecoding)
        active = np.flatnonzero(self._active)
        self._decoding = self._decoding.select(active)
        self._two_stage = TwoStageArgmax.of(self._decoding, self._settings)
        self._batch_rows = [self._batch_rows[index] for index in active]
        self._token, self._position = self._token[active], self._position[active]
        self._active, self._indices = np.ones(len(active), np.int64), np.arange(len(active))

    def _steps_on_device(self) -> Iterator[None]:
        """Appends the tokens that a device generates without the host.

        Does nothing where the decoding cannot do that; the caller goes on where the device stops.
        """
        while (
            self._active_count
            and isinstance(self._decoding, GeneratesOnDevice)
            and not self._is_cancelled()
        ):
            blocks = self._decoding.step_blocks(self._token.copy(), self._position.copy())
            start, exhausted = time.perf_counter(), True
            try:
                for block in blocks:
                    yield from self._append_block(block, time.perf_counter() - start)
                    start = time.perf_counter()
                    if not self._active_count or self._should_shrink() or self._is_cancelled():
                        exhausted = False
                        break
            finally:
                blocks.close()
            if exhausted:
                return
            if self._active_count and self._should_shrink():
                self._drop_finished()

    def _append_block(self, block: StepBlock, seconds: float) -> Iterator[None]:
        """Appends the tokens of a block step by step, until all sequences have ended."""
        if block.reason is not None:
            self._notes[f"steps were launched one by one: {block.reason}"] = None
        count = len(block.tokens)
        for tokens, scores in zip(block.tokens, block.scores, strict=True):
            if not self._active_count or self._is_cancelled():
                return
            self._check_finite(scores)
            self._append(tokens, scores.tolist() if self._settings.scores else None)
            self._step_seconds.append(seconds / count)
            yield

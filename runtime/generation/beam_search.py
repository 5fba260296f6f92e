"""Beam search: finds the most probable sequences, not the most probable token of each step.

The beams of an input are neighbouring rows of the batch and share its memory, so that only their
caches are reordered. The inputs of a batch do not influence each other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.backends.protocol import Decoding, FloatArray, ReorderableDecoding
from hybrid_deploy.runtime.deadline import StoppedError, Until
from hybrid_deploy.runtime.generation.beam_hypotheses import Hypotheses
from hybrid_deploy.runtime.generation.logits import prompt_logits
from hybrid_deploy.runtime.generation.sequences import BatchResult, Cancellation, begin_rows
from hybrid_deploy.runtime.generation.settings import DecodingSettings


class BeamSearch:
    """The beam searches of one batch, one for each input.

    Args:
        decoding: a started batch, one sequence for each input.
        prompts: the first tokens of each input, at least one.
        settings: how tokens are chosen, and when a sequence ends; with beams.
        cancellation: ends the search early; None searches to the end.

    Raises:
        UsageError: the backend cannot reorder sequences, a prompt is empty or too long, or the
            number of prompts is not the number of inputs.
        CapacityError: a prompt is longer than the caches.
    """

    def __init__(
        self,
        decoding: Decoding,
        prompts: Sequence[Sequence[int]],
        settings: DecodingSettings,
        cancellation: Cancellation | None = None,
    ) -> None:
        assert settings.beams is not None
        if not isinstance(decoding, ReorderableDecoding) or not decoding.resizable:
            raise UsageError(
                "a beam search needs graphs without a fixed batch, and a backend that can "
                "reorder sequences; ask for one beam, export without --batch, or take "
                "--backend onnxruntime"
            )
        rows = begin_rows(prompts, decoding.batch, settings.limits)
        self._decoding = decoding.expand_beams(1)
        self._count, self._capacity = settings.beams.count, settings.limits.capacity
        self._cancellation = cancellation or Cancellation()
        self._until_deadline = Until(self._cancellation.deadline)
        self._searches = [Hypotheses(row, settings, settings.beams) for row in rows]
        self._batch_searches = list(self._searches)

    def run(self) -> BatchResult:
        """Searches until the search of every input has ended; returns the best sequences.

        Raises:
            BackendError: the logits are not finite, or the processors exclude all tokens.
        """
        milliseconds: list[float] = []
        end = time.perf_counter()
        while self._batch_searches and not self._is_cancelled():
            try:
                with self._until_deadline:
                    logits = self._logits()
            except StoppedError:  # the beams of the steps before stay
                continue
            self._advance(logits)
            start, end = end, time.perf_counter()
            milliseconds.append((end - start) * 1e3)
        return BatchResult(
            sequences=tuple(search.sequence_result() for search in self._searches),
            first_ms=milliseconds[0] if milliseconds else 0.0,
            step_ms=tuple(milliseconds[1:]),
        )

    def _logits(self) -> FloatArray:
        """Decodes the newest token of every beam; returns (inputs, beams, vocabulary)."""
        inputs = len(self._batch_searches)
        if not self._batch_searches[0].length:
            prompts = [search.row.prompt for search in self._batch_searches]
            first = prompt_logits(self._decoding, prompts)
            logits = np.repeat(first[:, None], self._count, 1)
            self._decoding = self._decoding.expand_beams(self._count)
            return logits
        token = np.concatenate([search.newest for search in self._batch_searches])
        lengths = [len(search.row.prompt) + search.length for search in self._batch_searches]
        newest = [min(length, self._capacity) - 1 for length in lengths]
        position = np.repeat(np.array(newest, np.int64), self._count)
        return self._decoding.step(token, position).reshape(inputs, self._count, -1)

    def _advance(self, logits: FloatArray) -> None:
        """Replaces all beams by their best continuations, and reorders the caches accordingly."""
        rows = np.arange(logits.shape[0] * self._count).reshape(-1, self._count)
        for input_rows, search, values in zip(rows, self._batch_searches, logits, strict=True):
            if not search.done:
                search.advance(values)
                input_rows[:] = input_rows[0] + search.sources
        active = [index for index, search in enumerate(self._batch_searches) if not search.done]
        if 2 * len(active) <= len(self._batch_searches):
            self._batch_searches = [self._batch_searches[index] for index in active]
            if active:
                self._decoding = self._decoding.select(rows[active].reshape(-1))
        else:
            self._decoding.reorder(rows.reshape(-1))

    def _is_cancelled(self) -> bool:
        """Returns whether the search must end early; ends the searches of all inputs if so."""
        reason = self._cancellation.reason()
        if reason is None:
            return False
        for search in self._batch_searches:
            if not search.done:
                search.cancel(reason)
        return True

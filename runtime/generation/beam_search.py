"""Beam search: the likeliest sequences instead of the likeliest token.

The beams of an input lie side by side, share its memory and change places by their caches alone.
Every input of a batch is searched as if it were alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.backends.protocol import Decoding, FloatArray, ReorderableDecoding
from hybrid_deploy.runtime.generation.beam_hypotheses import Hypotheses
from hybrid_deploy.runtime.generation.logits import prompt_logits
from hybrid_deploy.runtime.generation.sequences import BatchResult, Cancellation, begin_rows
from hybrid_deploy.runtime.generation.settings import DecodingSettings


class BeamSearch:
    """The beams of one batch.

    Args:
        decoding: a started batch, one sequence for each input.
        prompts: for each input its first tokens, at least one.
        rules: say how many beams there are.
        control: what may end the search early.

    Raises:
        UsageError: the backend cannot search, a prompt is empty or too long, or there is not one
            for each input.
        CapacityError: a prompt is longer than the caches.
    """

    def __init__(
        self,
        decoding: Decoding,
        prompts: Sequence[Sequence[int]],
        rules: DecodingSettings,
        control: Cancellation | None = None,
    ) -> None:
        assert rules.beams is not None
        if not isinstance(decoding, ReorderableDecoding) or not decoding.resizable:
            raise UsageError(
                "a beam search needs graphs without a fixed batch, and a backend that can "
                "rearrange sequences; ask for one beam, export without --batch, or take "
                "--backend onnxruntime"
            )
        rows = begin_rows(prompts, decoding.batch, rules.limits)
        self._decoding = decoding.expand_beams(1)
        self._count, self._capacity = rules.beams.count, rules.limits.capacity
        self._control = control or Cancellation()
        self._inputs = [Hypotheses(row, rules, rules.beams) for row in rows]
        self._slots = list(self._inputs)

    def run(self) -> BatchResult:
        """Searches until every input has its sequences.

        Raises:
            BackendError: the logits are not numbers, or the rules leave no token.
        """
        milliseconds: list[float] = []
        now = time.perf_counter()
        while self._slots and not self._halted():
            self._advance(self._logits())
            began, now = now, time.perf_counter()
            milliseconds.append((now - began) * 1e3)
        return BatchResult(
            sequences=tuple(each.decoded() for each in self._inputs),
            first_ms=milliseconds[0] if milliseconds else 0.0,
            step_ms=tuple(milliseconds[1:]),
        )

    def _logits(self) -> FloatArray:
        """Decodes the newest token of every beam; gives (inputs, beams, vocabulary)."""
        inputs = len(self._slots)
        if not self._slots[0].length:
            first = prompt_logits(self._decoding, [each.row.prompt for each in self._slots])
            logits = np.repeat(first[:, None], self._count, 1)
            self._decoding = self._decoding.expand_beams(self._count)
            return logits
        token = np.concatenate([each.newest for each in self._slots])
        newest = [min(len(s.row.prompt) + s.length, self._capacity) - 1 for s in self._slots]
        position = np.repeat(np.array(newest, np.int64), self._count)
        return self._decoding.step(token, position).reshape(inputs, self._count, -1)

    def _advance(self, logits: FloatArray) -> None:
        """Goes on with the best continuations of every input, and lets the caches follow."""
        rows = np.arange(logits.shape[0] * self._count).reshape(-1, self._count)
        for own, each, values in zip(rows, self._slots, logits, strict=True):
            if not each.done:
                each.advance(values)
                own[:] = own[0] + each.sources
        going = [number for number, each in enumerate(self._slots) if not each.done]
        if 2 * len(going) <= len(self._slots):
            self._slots = [self._slots[number] for number in going]
            if going:
                self._decoding = self._decoding.select(rows[going].reshape(-1))
        else:
            self._decoding.reorder(rows.reshape(-1))

    def _halted(self) -> bool:
        """Ends all searches if nobody wants more of them."""
        reason = self._control.reason()
        if reason is None:
            return False
        for each in self._slots:
            if not each.done:
                each.give_up(reason)
        return True

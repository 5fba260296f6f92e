"""The sequences that a beam search keeps of one input: those that grow, and those that have ended.

What is kept, how it is ranked and when the search ends is as in `generate()` of Hugging Face
transformers 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.generation.incremental_text import IncrementalDetokenizer
from hybrid_deploy.runtime.generation.logits import check_largest
from hybrid_deploy.runtime.generation.sequences import FinishReason, Row, SequenceResult
from hybrid_deploy.runtime.generation.settings import Beams, DecodingSettings
from hybrid_deploy.runtime.generation.top_k import top_k_indices

_NEVER = np.float32(-1e9)
"""The total of what is no sequence: far below any sum of logarithms, but a number."""


@dataclass(frozen=True)
class _Ended:
    """A sequence that has ended, or was given up; `total` is what it is ranked by."""

    tokens: tuple[int, ...]
    scores: tuple[float, ...]
    total: float
    finish: FinishReason
    text: str | None


@dataclass(frozen=True)
class _Candidate:
    """How a beam may go on: why it would end there, its text, and that up to a stop sequence."""

    finish: FinishReason | None
    reading: IncrementalDetokenizer | None
    text: str | None = None


class Hypotheses:
    """The search for one input.

    Attributes:
        row: the prompt and the limits.
        length: how many new tokens the beams have.
        newest: (beams,), the last token of each.
        sources: (beams,), which of the beams before it each one continues.
        done: whether the search has ended.
    """

    def __init__(self, row: Row, rules: DecodingSettings, beams: Beams) -> None:
        self.row, self.length, self.done = row, 0, False
        self.newest = np.zeros(beams.count, np.int64)
        self.sources = np.arange(beams.count)
        self._rules, self._beams = rules, beams
        self._ends = frozenset(rules.limits.end_tokens)
        # All beams begin alike: only the first one counts.
        self._totals = np.full(beams.count, _NEVER, np.float32)
        self._totals[0] = 0
        self._tokens = np.zeros((beams.count, len(row.prompt) + row.most), np.int64)
        self._tokens[:, : len(row.prompt)] = row.prompt
        self._scores = np.zeros((beams.count, row.most), np.float32)
        begin = None if rules.stop is None else rules.stop.begin
        self._readings = [begin] * beams.count
        self._ended: list[_Ended] = []
        # as large as the logits, so that a step allocates nothing
        self._values = self._spare = np.empty((0, 0), np.float32)

    def advance(self, logits: FloatArray) -> None:
        """Goes on with the best continuations.

        Args:
            logits: (beams, vocabulary).

        Raises:
            BackendError: they are not numbers, or the rules leave no token.
        """
        scores = self._log_probabilities(logits)
        totals = np.add(scores, self._totals[:, None], out=self._spare)
        count = min(self._beams.candidates(len(self._ends)), totals.size)
        places = top_k_indices(totals.reshape(-1), count)
        best = totals.reshape(-1)[places]
        if best[0] <= _NEVER / 2:
            if not self._ended:
                check_largest(-np.inf, self._where())
            self.done = True
            return
        sources, tokens = np.divmod(places, totals.shape[1])
        self._extend(sources, tokens, best, scores[sources, tokens])

    def give_up(self, reason: FinishReason) -> None:
        """Ends the search with what there is, the beams included."""
        self.done, self.row.finish = True, reason
        for place, total in enumerate(self._totals):
            if self.length:
                self._note_ended(place, (), total, _Candidate(reason, None))

    def decoded(self) -> SequenceResult:
        """Returns the best sequence, with the next best ones."""
        found = [
            SequenceResult(
                each.tokens, self._asked(each.scores), each.finish, each.text, each.total
            )
            for each in self._ended[: self._beams.n_best]
        ]
        if not found:
            return SequenceResult((), self._asked(()), self.row.finish or "cancelled")
        best = found[0]
        return SequenceResult(
            best.tokens, best.scores, best.finish, best.text, best.sequence_score, tuple(found[1:])
        )

    def _asked(self, scores: tuple[float, ...]) -> tuple[float, ...] | None:
        return scores if self._rules.scores else None

    def _log_probabilities(self, logits: FloatArray) -> FloatArray:
        """Returns what each next token adds to the total of a beam, after the rules."""
        largest = logits.max(-1, keepdims=True)
        for value in largest[:, 0].tolist():
            check_largest(value, self._where())
        if self._spare.shape != logits.shape:
            self._values, self._spare = np.empty_like(logits), np.empty_like(logits)
        scores: FloatArray = np.subtract(logits, largest, out=self._values)
        scores -= np.log(np.exp(scores, out=self._spare).sum(-1, keepdims=True))
        end = len(self.row.prompt) + self.length
        for values, tokens in zip(scores, self._tokens[:, :end], strict=True):
            for process in self._rules.processors:
                process(values, tokens, len(self.row.prompt))
        return scores

    def _extend(
        self, sources: IntArray, tokens: IntArray, totals: FloatArray, scores: FloatArray
    ) -> None:
        """Takes candidates, the best first, as beams or as sequences that have ended."""
        pairs = zip(sources.tolist(), tokens.tolist(), strict=True)
        candidates = [self._candidate(source, token) for source, token in pairs]
        self.length += 1
        for place, candidate in enumerate(candidates[: self._beams.count]):
            newest = ((int(tokens[place]), float(scores[place])),)
            self._note_ended(int(sources[place]), newest, totals[place], candidate)
        ended = np.array([candidate.finish is not None for candidate in candidates])
        running = totals + np.where(ended, _NEVER, np.float32(0))
        kept = np.argsort(-running, kind="stable")[: self._beams.count]
        self.newest, self.sources = tokens[kept], sources[kept]
        self._tokens, self._scores = self._tokens[self.sources], self._scores[self.sources]
        self._tokens[:, len(self.row.prompt) + self.length - 1] = self.newest
        self._scores[:, self.length - 1] = scores[kept]
        self._totals = running[kept]
        self._readings = [candidates[place].reading for place in kept]
        self.done = bool(ended.all()) or self._is_decided()

    def _candidate(self, source: int, token: int) -> _Candidate:
        reading = self._readings[source]
        if token in self._ends:
            return _Candidate("end", reading)
        limit = self.row.limit if self.length + 1 >= self.row.most else None
        if reading is None or self._rules.stop is None:
            return _Candidate(limit, reading)
        longer = reading.advanced(token)
        place = self._rules.stop.place(longer.text, len(reading.text))
        if place is None:
            return _Candidate(limit, longer)
        return _Candidate("stop", longer, longer.text[:place])

    def _note_ended(
        self,
        beam: int,
        newest: Sequence[tuple[int, float]],
        total: np.float32,
        candidate: _Candidate,
    ) -> None:
        """Keeps a sequence if it has ended and is among the best of those.

        Args:
            beam: which beam it continues.
            newest: the token that it adds, with its score; none if it is the beam itself.
            total: the sum of its scores.
            candidate: says why it ended.
        """
        if candidate.finish is None or total <= _NEVER / 2:
            return
        begin, old = len(self.row.prompt), self.length - len(newest)
        tokens = self._tokens[beam, begin : begin + old].tolist() + [t for t, _ in newest]
        scores = self._scores[beam, :old].tolist() + [score for _, score in newest]
        ranked = float(total / np.float32(self.length**self._beams.length_penalty))
        ended = _Ended(tuple(tokens), tuple(scores), ranked, candidate.finish, candidate.text)
        self._ended.append(ended)
        self._ended.sort(key=lambda ended: -ended.total)
        del self._ended[self._beams.count :]

    def _is_decided(self) -> bool:
        """Returns whether no beam is expected to become better than what has ended."""
        if len(self._ended) < self._beams.count:
            return False
        if self._beams.early_stopping is True:
            return True
        penalty, length = self._beams.length_penalty, self.length
        if self._beams.early_stopping == "never" and penalty > 0:
            length = self.row.most
        possible = float(self._totals[0] / np.float32(length**penalty))
        return possible <= self._ended[-1].total

    def _where(self) -> str:
        return f"sequence {self.row.index} at step {self.length}"

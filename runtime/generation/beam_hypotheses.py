"""The beams of one input and its best ended sequences.

Which beams go on, how sequences are ranked and when the search ends is as in `generate()` of
Hugging Face transformers 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.generation.incremental_text import IncrementalDetokenizer
from hybrid_deploy.runtime.generation.logits import check_largest_logit
from hybrid_deploy.runtime.generation.sequences import FinishReason, Row, SequenceResult
from hybrid_deploy.runtime.generation.settings import Beams, DecodingSettings
from hybrid_deploy.runtime.generation.top_k import top_k_indices

_IMPOSSIBLE = np.float32(-1e9)
"""The total of a beam that must not go on: far below any sum of log-probabilities, but finite."""


@dataclass(frozen=True)
class _Ended:
    """A sequence that has ended or was cancelled; `sequence_score` ranks it."""

    tokens: tuple[int, ...]
    scores: tuple[float, ...]
    sequence_score: float
    finish: FinishReason
    text: str | None


@dataclass(frozen=True)
class _Continuation:
    """A beam with one more token: why it ends, its detokenizer, its text before a stop string."""

    finish: FinishReason | None
    detokenizer: IncrementalDetokenizer | None
    text: str | None = None


class Hypotheses:
    """The beam search of one input.

    Args:
        row: the input's prompt and limits.
        settings: how tokens are chosen, and when a sequence ends.
        beams: settings of the beam search.

    Attributes:
        row: the input's prompt and limits; its `finish` is set when the search is cancelled.
        length: number of new tokens of every beam.
        newest: (beams,) int64, the last token of each beam.
        sources: (beams,) int64, index of the beam of the step before that each beam continues.
        done: whether the search has ended.
    """

    def __init__(self, row: Row, settings: DecodingSettings, beams: Beams) -> None:
        self.row, self.length, self.done = row, 0, False
        self.newest = np.zeros(beams.count, np.int64)
        self.sources = np.arange(beams.count)
        self._settings, self._beams = settings, beams
        self._end_tokens = frozenset(settings.limits.end_tokens)
        # all beams are the same at first, so that only one of them may be continued
        self._totals = np.full(beams.count, _IMPOSSIBLE, np.float32)
        self._totals[0] = 0
        self._tokens = np.zeros((beams.count, len(row.prompt) + row.max_tokens), np.int64)
        self._tokens[:, : len(row.prompt)] = row.prompt
        self._scores = np.zeros((beams.count, row.max_tokens), np.float32)
        empty = None if settings.stop is None else settings.stop.empty
        self._detokenizers = [empty] * beams.count
        self._ended: list[_Ended] = []
        # both get the shape of the logits in the first step; later steps allocate nothing
        self._log_probs = self._scratch = np.empty((0, 0), np.float32)

    def advance(self, logits: FloatArray) -> None:
        """Replaces the beams by their best continuations.

        Args:
            logits: (beams, vocabulary) float32.

        Raises:
            BackendError: the logits are not finite, or the processors exclude all tokens.
        """
        scores = self._log_probabilities(logits)
        totals = np.add(scores, self._totals[:, None], out=self._scratch)
        count = min(self._beams.candidates(len(self._end_tokens)), totals.size)
        indices = top_k_indices(totals.reshape(-1), count)
        best_totals = totals.reshape(-1)[indices]
        if best_totals[0] <= _IMPOSSIBLE / 2:
            if not self._ended:
                check_largest_logit(-np.inf, self._where())
            self.done = True
            return
        sources, tokens = np.divmod(indices, totals.shape[1])
        self._extend(sources, tokens, best_totals, scores[sources, tokens])

    def cancel(self, reason: FinishReason) -> None:
        """Ends the search: the beams compete as they are with the sequences that have ended."""
        self.done, self.row.finish = True, reason
        for beam, total in enumerate(self._totals):
            if self.length:
                self._add_ended(beam, (), total, _Continuation(reason, None))

    def sequence_result(self) -> SequenceResult:
        """Returns the best sequence; the next best ones are its alternatives.

        After a search that was ended early, the best sequence says so, even if it has an end token.
        """
        results = [
            SequenceResult(
                ended.tokens,
                self._requested(ended.scores),
                ended.finish,
                ended.text,
                ended.sequence_score,
            )
            for ended in self._ended[: self._beams.n_best]
        ]
        if not results:
            return SequenceResult((), self._requested(()), self.row.finish or "cancelled")
        best = results[0]
        return SequenceResult(
            best.tokens,
            best.scores,
            self.row.finish or best.finish,
            best.text,
            best.sequence_score,
            tuple(results[1:]),
        )

    def _requested(self, scores: tuple[float, ...]) -> tuple[float, ...] | None:
        return scores if self._settings.scores else None

    def _log_probabilities(self, logits: FloatArray) -> FloatArray:
        """Returns the log-probability of each next token, after the processors."""
        largest = logits.max(-1, keepdims=True)
        for value in largest[:, 0].tolist():
            check_largest_logit(value, self._where())
        if self._scratch.shape != logits.shape:
            self._log_probs, self._scratch = np.empty_like(logits), np.empty_like(logits)
        log_probs: FloatArray = np.subtract(logits, largest, out=self._log_probs)
        log_probs -= np.log(np.exp(log_probs, out=self._scratch).sum(-1, keepdims=True))
        length = len(self.row.prompt) + self.length
        for values, tokens in zip(log_probs, self._tokens[:, :length], strict=True):
            for processor in self._settings.processors:
                processor(values, tokens, len(self.row.prompt))
        return log_probs

    def _extend(
        self, sources: IntArray, tokens: IntArray, totals: FloatArray, scores: FloatArray
    ) -> None:
        """Turns continuations into the new beams, and into ended sequences.

        Args:
            sources: (n,), index of the beam that each continuation continues; the best one first.
            tokens: (n,), new token of each continuation.
            totals: (n,), sum of the scores of all tokens of each continuation.
            scores: (n,), score of the new token of each continuation.
        """
        pairs = zip(sources.tolist(), tokens.tolist(), strict=True)
        continuations = [self._continuation(source, token) for source, token in pairs]
        self.length += 1
        for index, continuation in enumerate(continuations[: self._beams.count]):
            newest = ((int(tokens[index]), float(scores[index])),)
            self._add_ended(int(sources[index]), newest, totals[index], continuation)
        ended = np.array([continuation.finish is not None for continuation in continuations])
        running = totals + np.where(ended, _IMPOSSIBLE, np.float32(0))
        best = np.argsort(-running, kind="stable")[: self._beams.count]
        self.newest, self.sources = tokens[best], sources[best]
        self._tokens, self._scores = self._tokens[self.sources], self._scores[self.sources]
        self._tokens[:, len(self.row.prompt) + self.length - 1] = self.newest
        self._scores[:, self.length - 1] = scores[best]
        self._totals = running[best]
        self._detokenizers = [continuations[index].detokenizer for index in best]
        self.done = bool(ended.all()) or self._is_decided()

    def _continuation(self, source: int, token: int) -> _Continuation:
        detokenizer = self._detokenizers[source]
        if token in self._end_tokens:
            return _Continuation("end", detokenizer)
        limit = self.row.limit if self.length + 1 >= self.row.max_tokens else None
        if detokenizer is None or self._settings.stop is None:
            return _Continuation(limit, detokenizer)
        following = detokenizer.after(token)
        index = self._settings.stop.find(following.text, len(detokenizer.text))
        if index is None:
            return _Continuation(limit, following)
        return _Continuation("stop", following, following.text[:index])

    def _add_ended(
        self,
        beam: int,
        newest: Sequence[tuple[int, float]],
        total: np.float32,
        continuation: _Continuation,
    ) -> None:
        """Adds a sequence to the best ended ones, if it has ended and is among the best.

        Args:
            beam: index of the beam that the sequence continues.
            newest: the token that follows the beam, with its score; () for the beam itself.
            total: the sum of the scores of all tokens.
            continuation: why the sequence ended, and its text.
        """
        if continuation.finish is None or total <= _IMPOSSIBLE / 2:
            return
        start, length = len(self.row.prompt), self.length - len(newest)
        tokens = self._tokens[beam, start : start + length].tolist() + [t for t, _ in newest]
        scores = self._scores[beam, :length].tolist() + [score for _, score in newest]
        sequence_score = float(total / np.float32(self.length**self._beams.length_penalty))
        self._ended.append(
            _Ended(
                tuple(tokens),
                tuple(scores),
                sequence_score,
                continuation.finish,
                continuation.text,
            )
        )
        self._ended.sort(key=lambda ended: -ended.sequence_score)
        del self._ended[self._beams.count :]

    def _is_decided(self) -> bool:
        """Returns whether no beam is expected to become better than the worst ended sequence."""
        if len(self._ended) < self._beams.count:
            return False
        if self._beams.early_stopping is True:
            return True
        penalty, length = self._beams.length_penalty, self.length
        if self._beams.early_stopping == "never" and penalty > 0:
            length = self.row.max_tokens
        best_possible = float(self._totals[0] / np.float32(length**penalty))
        return best_possible <= self._ended[-1].sequence_score

    def _where(self) -> str:
        return f"sequence {self.row.index} at step {self.length}"

"""Which tokens may come: said by a function, or by a regular expression over the text."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from hybrid_deploy.errors import MissingDependencyError, UsageError
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.generation.incremental_text import IncrementalDetokenizer

_TRIED = 32
"""How many of the likeliest tokens are tried one by one before all are."""

_LAST = chr(0x10FFFF)


@dataclass(frozen=True)
class AllowedTokens:
    """Takes out all tokens but those that a function gives."""

    allowed: Callable[[IntArray], Sequence[int]]

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Asks the function.

        Raises:
            UsageError: it gives something else than tokens.
        """
        given = self.allowed(tokens.copy())
        ids = np.asarray(given if len(given) else np.zeros(0, np.int64))
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise UsageError(f"the function of allowed tokens must give token ids, got {given!r}")
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(logits):
            raise UsageError(
                f"the function of allowed tokens gave token {ids.min()} or {ids.max()}; there are "
                f"0 to {len(logits) - 1}"
            )
        kept = logits[ids]
        logits[:] = -np.inf
        logits[ids] = kept


@dataclass
class Pattern:
    """Takes out tokens with which the text cannot become a match of a regular expression.

    The end tokens come only where the text matches as a whole; other tokens without text never do.
    A character that a tokenizer spreads over several tokens may begin where the pattern takes the
    character U+FFFD, as `.` does.

    Attributes:
        pattern: in the syntax of the `regex` package, which is that of Python and more.
        begin: the reading of a sequence without tokens.
        end_tokens: what ends a sequence.
        needed: how many of the likeliest tokens are wanted; the others are taken out with those
            that do not fit, for then most need not be looked at. None for all that fit.

    Raises:
        UsageError: it is not a regular expression.
        MissingDependencyError: `regex` is not installed.
    """

    pattern: str
    begin: IncrementalDetokenizer
    end_tokens: tuple[int, ...]
    needed: int | None = None
    _readings: dict[tuple[int, ...], IncrementalDetokenizer] = field(
        default_factory=dict, repr=False
    )

    def __post_init__(self) -> None:
        self._compiled = compile_pattern(self.pattern)

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Takes them out, in place."""
        reading = self._reading(tuple(tokens[prompt:].tolist()))
        fitting = None if self.needed is None else self._likeliest(logits, reading, self.needed)
        if fitting is None:
            fitting = self._all(reading, len(logits))
        kept = logits[fitting]
        logits[:] = -np.inf
        logits[fitting] = kept

    def _reading(self, tokens: tuple[int, ...]) -> IncrementalDetokenizer:
        """Returns the text of the new tokens; mostly that of all but one is known."""
        if not tokens:
            return self.begin
        found = self._readings.get(tokens)
        if found is None:
            known = self._readings.get(tokens[:-1])
            found = known or self.begin
            for token in tokens[-1:] if known else tokens:
                found = found.advanced(token)
            self._readings[tokens] = found
        return found

    def _likeliest(
        self, logits: FloatArray, reading: IncrementalDetokenizer, needed: int
    ) -> list[int] | None:
        """Returns the likeliest tokens that fit, if there are enough among the likeliest of all."""
        count = min(max(_TRIED, 2 * needed), len(logits))
        order = np.argpartition(logits, -count)[-count:]
        order = order[np.argsort(-logits[order], kind="stable")]
        fitting: list[int] = []
        for token in order.tolist():
            if logits[token] == -np.inf:
                return fitting
            if self._fits(reading, token):
                fitting.append(token)
                if len(fitting) == needed:
                    return fitting
        return fitting if count == len(logits) else None

    def _fits(self, reading: IncrementalDetokenizer, token: int) -> bool:
        if token in self.end_tokens:
            return self._compiled.fullmatch(reading.whole) is not None
        longer = reading.advanced(token)
        return longer is not reading and self._may_become(longer.whole)

    def _may_become(self, text: str) -> bool:
        return self._compiled.fullmatch(text, partial=True) is not None

    def _all(self, reading: IncrementalDetokenizer, vocabulary: int) -> list[int]:
        """Returns all tokens that fit."""
        ends = [t for t in self.end_tokens if t < vocabulary and self._fits(reading, t)]
        if reading.waiting:
            special = {*self.end_tokens}
            others = (t for t in range(vocabulary) if t not in special)
            return ends + [t for t in others if self._fits(reading, t)]
        behind = _any_text(self.begin, vocabulary) if reading.known else self.begin
        pieces = _pieces(behind, vocabulary, self.end_tokens)
        found = pieces.fitting(lambda piece: self._may_become(reading.text + piece))
        return ends + list(found)


@dataclass(frozen=True)
class _Pieces:
    """What the tokens of a vocabulary add to a text, in the order of the texts."""

    texts: list[str]
    tokens: list[int]

    def fitting(self, fits: Callable[[str], bool]) -> Iterator[int]:
        """Yields the tokens with a text that fits; what begins with one that does not, does not."""
        at = 0
        while at < len(self.texts):
            text = self.texts[at]
            if fits(text):
                yield self.tokens[at]
                at += 1
                continue
            wrong = next(n for n in range(1, len(text) + 1) if n == len(text) or not fits(text[:n]))
            at = max(at + 1, bisect.bisect_right(self.texts, text[:wrong] + _LAST, lo=at))


@lru_cache(maxsize=8)
def _any_text(begin: IncrementalDetokenizer, vocabulary: int) -> IncrementalDetokenizer:
    """Returns the reading of some text: what a token adds is the same behind all but the empty."""
    readings = (begin.advanced(token) for token in range(vocabulary))
    return next((reading for reading in readings if reading.text.strip()), begin)


@lru_cache(maxsize=8)
def _pieces(
    behind: IncrementalDetokenizer, vocabulary: int, end_tokens: tuple[int, ...]
) -> _Pieces:
    """Reads every token behind a text; takes some tenths of a second for a large vocabulary."""
    pairs = []
    for token in range(vocabulary):
        longer = behind.advanced(token)
        if token not in end_tokens and longer is not behind:
            pairs.append((longer.whole[len(behind.text) :], token))
    pairs.sort()
    return _Pieces([text for text, _ in pairs], [token for _, token in pairs])


def compile_pattern(pattern: str) -> Any:
    """Compiles a regular expression that can be matched in part.

    Raises:
        UsageError: it is not a regular expression.
        MissingDependencyError: `regex` is not installed.
    """
    try:
        import regex
    except ImportError as error:
        raise MissingDependencyError("regex", extra="pattern") from error
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise UsageError(f"{pattern!r} is not a regular expression: {error}") from error

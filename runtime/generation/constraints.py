"""Constraints on the next token: by a function, or by a regular expression over the text."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from hybrid_deploy.argument_checks import shown
from hybrid_deploy.errors import MissingDependencyError, UsageError
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.generation.incremental_text import IncrementalDetokenizer
from hybrid_deploy.runtime.generation.options import AllowedFunction

_MIN_TRIED = 32
"""Smallest number of most probable tokens to try one by one before the whole vocabulary."""

_MATCH_SECONDS = 2.0
"""Longest time of one match; usual ones take microseconds."""

_MAX_ELEMENTS = 100_000
"""Largest number of elements of a pattern, with its repetitions written out."""

_ELEMENT = re.compile(
    r"\\.|\[(?:\\.|[^\]\\])*\]|\{(?P<count>\d+(?:,\d*)?|,\d+)\}"
    r"|(?P<recursion>\(\?(?:R|[+-]?\d|&|P>))|.",
    re.DOTALL,
)

_LAST_CHARACTER = chr(0x10FFFF)


@dataclass(frozen=True)
class AllowedTokens:
    """Excludes all tokens except those that a user's function returns."""

    stretch: ClassVar[float | None] = None

    allowed: AllowedFunction

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Sets the logits of all other tokens to -inf.

        Raises:
            UsageError: the function returns something other than token ids.
        """
        allowed = self.allowed(tokens.copy())
        try:
            ids = np.asarray(allowed if len(allowed) else np.zeros(0, np.int64))
        except (TypeError, ValueError):
            ids = np.zeros((), np.float64)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise UsageError(
                f"the function of allowed tokens must return token ids, got {allowed!r}"
            )
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(logits):
            raise UsageError(
                f"the function of allowed tokens returned token {ids.min()} or {ids.max()}; return "
                f"ids from 0 to {len(logits) - 1}"
            )
        _exclude_others(logits, ids)


@dataclass
class Pattern:
    """Excludes tokens after which the text can no longer match a regular expression.

    An end token is allowed only where the whole text matches; other tokens without text are never
    allowed. The first token of a character that takes several tokens is allowed where the pattern
    accepts the character U+FFFD, as `.` does.

    Attributes:
        pattern: regular expression in the syntax of the `regex` package, an extension of Python's.
        empty: the detokenizer of a sequence without tokens.
        end_tokens: ids of the tokens that end a sequence.
        needed: number of most probable allowed tokens that the caller uses. All others are then
            excluded too, so that most of the vocabulary need not be tried. None allows all tokens
            that fit.

    Raises:
        UsageError: `pattern` is not a regular expression.
        MissingDependencyError: `regex` is not installed.
    """

    stretch: ClassVar[float | None] = None

    pattern: str
    empty: IncrementalDetokenizer
    end_tokens: tuple[int, ...]
    needed: int | None = None
    _detokenizers: dict[tuple[int, ...], IncrementalDetokenizer] = field(
        default_factory=dict, repr=False
    )

    def __post_init__(self) -> None:
        self._compiled = compile_pattern(self.pattern)

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Sets the logits of excluded tokens to -inf, in place."""
        detokenizer = self._detokenizer(tuple(tokens[prompt:].tolist()))
        fitting = None
        if self.needed is not None:
            fitting = self._most_probable_fitting(logits, detokenizer, self.needed)
        if fitting is None:
            fitting = self._all_fitting(detokenizer, len(logits))
        _exclude_others(logits, fitting)

    def _detokenizer(self, tokens: tuple[int, ...]) -> IncrementalDetokenizer:
        """Returns the detokenizer after the new tokens; mostly only the last one is decoded."""
        if not tokens:
            return self.empty
        detokenizer = self._detokenizers.get(tokens)
        if detokenizer is None:
            previous = self._detokenizers.get(tokens[:-1])
            detokenizer = previous or self.empty
            for token in tokens[-1:] if previous else tokens:
                detokenizer = detokenizer.after(token)
            self._detokenizers[tokens] = detokenizer
        return detokenizer

    def _most_probable_fitting(
        self, logits: FloatArray, detokenizer: IncrementalDetokenizer, needed: int
    ) -> list[int] | None:
        """Returns the `needed` most probable tokens that fit; None if too few of those tried do."""
        count = min(max(_MIN_TRIED, 2 * needed), len(logits))
        order = np.argpartition(logits, -count)[-count:]
        order = order[np.argsort(-logits[order], kind="stable")]
        fitting: list[int] = []
        for token in order.tolist():
            if logits[token] == -np.inf:
                return fitting
            if self._fits(detokenizer, token):
                fitting.append(token)
                if len(fitting) == needed:
                    return fitting
        return fitting if count == len(logits) else None

    def _fits(self, detokenizer: IncrementalDetokenizer, token: int) -> bool:
        if token in self.end_tokens:
            return self._matches(detokenizer.full_text, partial=False)
        following = detokenizer.after(token)
        return following is not detokenizer and self._can_match(following.full_text)

    def _can_match(self, text: str) -> bool:
        """Returns whether the text, or a continuation of it, matches the pattern."""
        return self._matches(text, partial=True)

    def _matches(self, text: str, *, partial: bool) -> bool:
        try:
            match = self._compiled.fullmatch(text, partial=partial, timeout=_MATCH_SECONDS)
        except (TimeoutError, MemoryError, RecursionError) as error:
            raise UsageError(
                f"the pattern {shown(self.pattern)} takes too long, or too much RAM, for a text of "
                f"{len(text)} characters; write it without nested repetitions"
            ) from error
        return match is not None

    def _all_fitting(self, detokenizer: IncrementalDetokenizer, vocabulary: int) -> list[int]:
        """Returns all tokens that fit."""
        ends = [t for t in self.end_tokens if t < vocabulary and self._fits(detokenizer, t)]
        if detokenizer.pending:
            excluded = {*self.end_tokens}
            candidates = (t for t in range(vocabulary) if t not in excluded)
            return ends + [t for t in candidates if self._fits(detokenizer, t)]
        preceding = _some_text(self.empty, vocabulary) if detokenizer.context else self.empty
        pieces = _pieces(preceding, vocabulary, self.end_tokens)
        fitting = pieces.fitting(lambda piece: self._can_match(detokenizer.text + piece))
        return ends + list(fitting)


@dataclass(frozen=True)
class _Pieces:
    """The texts that the tokens of a vocabulary append, sorted, and the token of each text."""

    texts: list[str]
    tokens: list[int]

    def fitting(self, fits: Callable[[str], bool]) -> Iterator[int]:
        """Yields the tokens whose text fits.

        If the beginning of a text does not fit, no text with that beginning fits: all are skipped.
        """
        index = 0
        while index < len(self.texts):
            text = self.texts[index]
            if fits(text):
                yield self.tokens[index]
                index += 1
                continue
            length = next(
                n for n in range(1, len(text) + 1) if n == len(text) or not fits(text[:n])
            )
            last_skipped = text[:length] + _LAST_CHARACTER
            index = max(index + 1, bisect.bisect_right(self.texts, last_skipped, lo=index))


def _exclude_others(logits: FloatArray, tokens: Sequence[int] | IntArray) -> None:
    """Sets the logits of all tokens but these to -inf, in place."""
    values = logits[tokens]
    logits[:] = -np.inf
    logits[tokens] = values


@lru_cache(maxsize=8)
def _some_text(empty: IncrementalDetokenizer, vocabulary: int) -> IncrementalDetokenizer:
    """Returns the detokenizer of any text that is not blank: a token appends the same to each."""
    detokenizers = (empty.after(token) for token in range(vocabulary))
    return next((each for each in detokenizers if each.text.strip()), empty)


@lru_cache(maxsize=8)
def _pieces(
    preceding: IncrementalDetokenizer, vocabulary: int, end_tokens: tuple[int, ...]
) -> _Pieces:
    """Decodes every token after a text; takes some tenths of a second for a large vocabulary."""
    pairs = []
    for token in range(vocabulary):
        following = preceding.after(token)
        if token not in end_tokens and following is not preceding:
            pairs.append((following.full_text[len(preceding.text) :], token))
    pairs.sort()
    return _Pieces([text for text, _ in pairs], [token for _, token in pairs])


def _check_size(pattern: str) -> None:
    """Refuses a pattern whose repetitions or recursions can fill the RAM.

    `regex` writes repetitions out: `(a{900}){900}` has 810,000 elements, in 200 MB.
    """
    sums, last = [0], 0  # elements of each open group, and of the last element
    for match in _ELEMENT.finditer(pattern):
        element = match[0]
        if match["recursion"]:
            raise UsageError(f"the pattern {shown(pattern)} calls itself; write it without (?R)")
        if element == "(":
            sums.append(0)
        elif element == ")" and len(sums) > 1:
            last = sums.pop()
            sums[-1] += last
        elif match["count"]:
            count = max(_count(number) for number in match["count"].split(","))
            sums[-1] += last * (count - 1)
            last *= count
        elif element not in "*+?":
            last = 1
            sums[-1] += 1
        if sums[-1] > _MAX_ELEMENTS:
            raise UsageError(
                f"the pattern {shown(pattern)} has over {_MAX_ELEMENTS} elements, with its "
                "repetitions written out; repeat less with {n}"
            )


def _count(digits: str) -> int:
    """Returns the number in a repetition; one of many digits is only known to be too large."""
    return _MAX_ELEMENTS + 1 if len(digits) > len(str(_MAX_ELEMENTS)) else max(1, int(digits or 1))


def compile_pattern(pattern: str) -> Any:
    """Returns the compiled regular expression, of the `regex` package: it can match in part.

    Raises:
        UsageError: `pattern` is not a regular expression.
        MissingDependencyError: `regex` is not installed.
    """
    try:
        import regex
    except ImportError as error:
        raise MissingDependencyError("regex", extra="pattern") from error
    _check_size(pattern)
    try:
        return regex.compile(pattern)
    except Exception as error:  # RecursionError, MemoryError and others, besides regex.error
        reason = str(error) or type(error).__name__
        raise UsageError(f"{shown(pattern)} is not a regular expression: {reason}") from error

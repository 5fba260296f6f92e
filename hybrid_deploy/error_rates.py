"""Accuracy of decoded texts: character error rate, word error rate and exact match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hybrid_deploy.errors import InputError, MissingDependencyError


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of texts against the expected ones.

    Attributes:
        lines: number of texts that were compared.
        cer_percent: errors (characters substituted, deleted or inserted) per expected character,
            in percent.
        exact_percent: share of the texts without any error, in percent.
        wer_percent: word errors per expected word, in percent; None if no expected text has several
            words, because each word error is then an inexact text.
    """

    lines: int
    cer_percent: float
    exact_percent: float
    wer_percent: float | None = None


def measure_accuracy(expected: Sequence[str], actual: Sequence[str]) -> Accuracy:
    """Returns the accuracy of texts, each compared with the expected text at its index.

    Raises:
        InputError: all the expected texts are empty.
        MissingDependencyError: jiwer is not installed.
    """
    has_words = any(len(text.split()) > 1 for text in expected)
    return Accuracy(
        lines=len(expected),
        cer_percent=character_error_percent(expected, actual),
        exact_percent=exact_percent(expected, actual),
        wer_percent=word_error_percent(expected, actual) if has_words else None,
    )


def character_error_percent(expected: Sequence[str], actual: Sequence[str]) -> float:
    """Returns the errors per expected character, in percent.

    Whitespace at both ends of a text is ignored. Every character that is decoded where the expected
    text is empty counts as one error.

    Raises:
        InputError: all the expected texts are empty.
        MissingDependencyError: jiwer is not installed.
    """
    lines, spurious = _split(expected, actual)
    return _error_percent(_jiwer().process_characters, lines, sum(map(len, spurious)))


def word_error_percent(expected: Sequence[str], actual: Sequence[str]) -> float:
    """Returns the errors per expected word, in percent; whitespace separates words.

    Raises:
        InputError: all the expected texts are empty.
        MissingDependencyError: jiwer is not installed.
    """
    lines, spurious = _split(expected, actual)
    return _error_percent(
        _jiwer().process_words, lines, sum(len(text.split()) for text in spurious)
    )


def exact_percent(expected: Sequence[str], actual: Sequence[str]) -> float:
    """Returns the share of the texts that equal the expected ones, in percent.

    Whitespace at both ends of a text is ignored, as by the error rates.
    """
    pairs = zip(expected, actual, strict=True)
    return 100 * sum(a.strip() == b.strip() for a, b in pairs) / len(expected)


def _split(
    expected: Sequence[str], actual: Sequence[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns the pairs whose expected text is not empty, and the actual texts of the others.

    Some versions of jiwer refuse an empty expected text.
    """
    pairs = [(a.strip(), b.strip()) for a, b in zip(expected, actual, strict=True)]
    lines = [(a, b) for a, b in pairs if a]
    if not lines:
        raise InputError(
            "every expected text is empty, so there is no error rate; check the labels"
        )
    return lines, [b for a, b in pairs if not a]


def _error_percent(process: Any, lines: Sequence[tuple[str, str]], inserted: int) -> float:
    """Returns the errors of the lines plus `inserted`, per expected unit, in percent."""
    errors = process([a for a, _ in lines], [b for _, b in lines])
    wrong = errors.substitutions + errors.deletions
    return float(100 * (wrong + errors.insertions + inserted) / (errors.hits + wrong))


def _jiwer() -> Any:
    try:
        import jiwer
    except ImportError as error:
        raise MissingDependencyError("jiwer", extra="report") from error
    return jiwer

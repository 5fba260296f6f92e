"""Counts the errors of each text: in characters, in words, and whether it is exact.

Texts are compared as they are given: normalise them before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hybrid_deploy.accuracy.bootstrap import Counts
from hybrid_deploy.accuracy.normalizers import EXTRA
from hybrid_deploy.errors import MissingDependencyError


def character_errors(expected: Sequence[str], actual: Sequence[str]) -> Counts:
    """Returns the substituted, deleted and inserted characters per expected character.

    Every character that is decoded where the expected text is empty counts as one error.

    Raises:
        MissingDependencyError: jiwer is not installed.
    """
    return _errors(_jiwer().process_characters, len, expected, actual)


def word_errors(expected: Sequence[str], actual: Sequence[str]) -> Counts:
    """Returns the substituted, deleted and inserted words per expected word.

    Whitespace separates words. Every word that is decoded where the expected text is empty counts
    as one error.

    Raises:
        MissingDependencyError: jiwer is not installed.
    """
    # jiwer takes a space alone for the end of a word, not a line break
    spaced = ([" ".join(text.split()) for text in texts] for texts in (expected, actual))
    return _errors(_jiwer().process_words, lambda text: len(text.split()), *spaced)


def exact_matches(expected: Sequence[str], actual: Sequence[str]) -> Counts:
    """Returns the texts that equal the expected ones, per text."""
    equal = [a == b for a, b in zip(expected, actual, strict=True)]
    return Counts(np.array(equal, np.float64), np.ones(len(equal)))


def _errors(
    process: Any, length: Callable[[str], int], expected: Sequence[str], actual: Sequence[str]
) -> Counts:
    """Returns the errors of each text, per character or word.

    Some versions of jiwer refuse an empty expected text.
    """
    rows = []
    for text, decoded in zip(expected, actual, strict=True):
        if not text or text == decoded:
            rows.append((0 if text else length(decoded), length(text)))
            continue
        found = process(text, decoded)
        wrong = found.substitutions + found.deletions
        rows.append((wrong + found.insertions, found.hits + wrong))
    errors, lengths = np.array(rows, np.float64).reshape(-1, 2).T
    return Counts(errors, lengths)


def _jiwer() -> Any:
    try:
        import jiwer
    except ImportError as error:
        raise MissingDependencyError("jiwer", extra=EXTRA) from error
    return jiwer

"""The thirteen tokens that the reference model reads and writes."""

from __future__ import annotations

from collections.abc import Iterable

VOCABULARY: tuple[str, ...] = ("<pad>", "<start>", "<end>", *"0123456789")
PAD, START, END = 0, 1, 2
MAX_LENGTH = 16
"""Largest number of tokens of a sequence, start and end included."""


def tokens_from_text(text: str) -> list[int]:
    """Returns the tokens of a string of digits, between start and end.

    Raises:
        ValueError: the text holds anything but the digits 0-9.
    """
    unknown = sorted(set(text) - set(VOCABULARY[END + 1 :]))
    if unknown:
        raise ValueError(f"expected only the digits 0-9, got {''.join(unknown)!r} in {text!r}")
    return [START, *(VOCABULARY.index(character) for character in text), END]


def text_from_tokens(tokens: Iterable[int]) -> str:
    """Returns the digits up to the first end token; start and padding are skipped."""
    digits: list[str] = []
    for token in tokens:
        if token == END:
            break
        if token > END:
            digits.append(VOCABULARY[token])
    return "".join(digits)

"""Which scripts texts are written in: what a normaliser would destroy, and whether words exist."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_LATIN = "LATIN"
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


def latin_share(texts: Sequence[str]) -> float:
    """Returns the share of the letters that are Latin, within 0..1; 1 if there are no letters."""
    return _share_of(texts, (_LATIN,), otherwise=1.0)


def mark_share(texts: Sequence[str]) -> float:
    """Returns the number of accents, vowel signs and other marks per letter; 0 without letters.

    An accent that is part of a letter counts too. The English normaliser drops all of them.
    """
    characters = unicodedata.normalize("NFKD", "".join(texts))
    marks = sum(unicodedata.category(character)[0] == "M" for character in characters)
    letters = sum(character.isalpha() for character in characters)
    return marks / letters if letters else 0.0


def has_words(texts: Sequence[str]) -> bool:
    """Returns whether spaces separate words: a text has several, in a script that uses spaces.

    Chinese, Japanese, Thai, Lao, Khmer and Burmese put no space between words.
    """
    several = any(len(text.split()) > 1 for text in texts)
    return several and _share_of(texts, _UNSPACED, otherwise=0.0) < 0.5


def _share_of(texts: Sequence[str], scripts: tuple[str, ...], *, otherwise: float) -> float:
    letters = [character for text in texts for character in text if character.isalpha()]
    if not letters:
        return otherwise
    named = sum(unicodedata.name(letter, "").startswith(scripts) for letter in letters)
    return named / len(letters)

"""Normalisers: what counts as the same text before errors are counted.

A recogniser of speech chooses case, punctuation and the spelling of numbers freely, so its errors
are counted after these are made equal (Radford et al. 2022, arXiv:2212.04356, appendix C).
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hybrid_deploy.accuracy.scripts import latin_share, mark_share
from hybrid_deploy.errors import InputError, MissingDependencyError, UsageError

NORMALIZERS = ("whisper", "basic", "none")
"""Names of the normalisers, the one that changes most first."""

EXTRA = "report"
"""The extra that brings the library of the English normaliser."""

MOST_MARKS = 0.05
"""Largest number of accents and other marks per letter of labels that `whisper` may drop.

Article 1 of the Universal Declaration of Human Rights has 0.02 in German, 0.03 in French, 0.12 in
Czech and 0.42 in Vietnamese.
"""

_REPORTED_MARKS = 0.005
_LOGGER = logging.getLogger(__name__)
_TAGS = re.compile(r"[<\[][^>\]]*[>\]]")
_ASIDES = re.compile(r"\(([^)]+?)\)")


@dataclass(frozen=True)
class Normalizer:
    """A function of texts that removes differences which count as no errors.

    Attributes:
        name: one of `NORMALIZERS`.
        function: returns the text in the form that is compared.
    """

    name: str
    function: Callable[[str], str]

    def __call__(self, text: str) -> str:
        """Returns the text in the form that is compared, without spaces at its ends."""
        return self.function(text).strip()


def load_normalizer(name: str) -> Normalizer:
    """Returns a normaliser by its name.

    Args:
        name: `whisper` for English (case, punctuation, numbers, British spelling, contractions,
            fillers), `basic` for any language (case, punctuation, whitespace, Unicode form), or
            `none`, which ignores spaces at the ends alone.

    Raises:
        UsageError: there is no such normaliser.
        MissingDependencyError: `whisper` is named, and its library is not installed.
    """
    if name == "whisper":
        return Normalizer(name, _english())
    if name == "basic":
        return Normalizer(name, basic_text)
    if name == "none":
        return AS_DECODED
    raise UsageError(f"unknown normalizer {name!r}; choose {', '.join(NORMALIZERS)}")


def basic_text(text: str) -> str:
    """Returns a text in lower case and NFKC, with a space for punctuation, symbols and whitespace.

    What stands in brackets is left out: it tells of noises. It is Whisper's `BasicTextNormalizer`,
    except that accents and vowel signs which Unicode does not compose stay: without them, words of
    Hindi, Thai or Arabic fall apart.
    """
    spoken = _ASIDES.sub("", _TAGS.sub("", text.lower()))
    characters = unicodedata.normalize("NFKC", spoken)
    kept = (" " if unicodedata.category(c)[0] in "PS" else c for c in characters)
    return " ".join("".join(kept).lower().split())


AS_DECODED = Normalizer("none", str)
"""Compares texts as they are."""


@lru_cache(maxsize=1)
def _english() -> Callable[[str], str]:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise MissingDependencyError(
            "whisper-normalizer", extra=EXTRA, otherwise="give --normalize basic"
        ) from error
    function: Callable[[str], str] = EnglishTextNormalizer()
    return function


def check_labels(labels: Sequence[str], normalizer: Normalizer) -> None:
    """Checks that a normaliser suits the true texts; reports on the log what it takes from them.

    Raises:
        InputError: `whisper` would destroy the texts: most of their letters are not Latin, or they
            have more than `MOST_MARKS` marks per letter.
    """
    if normalizer.name == "whisper":
        _check_english(labels)
    emptied = sum(bool(label.strip()) and not normalizer(label) for label in labels)
    if emptied:
        _LOGGER.warning(
            "%d of %d labels are empty once %s has normalised them; whatever is decoded there "
            "counts as errors", emptied, len(labels), normalizer.name,
        )  # fmt: skip


def _check_english(labels: Sequence[str]) -> None:
    latin, marks = latin_share(labels), mark_share(labels)
    problem = None
    if latin < 0.5:
        problem = f"{1 - latin:.0%} of the labels' letters are not Latin"
    elif marks > MOST_MARKS:
        problem = f"it would drop the accents of {marks:.0%} of the labels' letters"
    if problem is not None:
        raise InputError(
            f"--normalize whisper is for English, and {problem}; give --normalize basic"
        )
    if marks > _REPORTED_MARKS:
        _LOGGER.warning(
            "whisper drops the accents of %.1f %% of the labels' letters; for a language other "
            "than English give --normalize basic", 100 * marks,
        )  # fmt: skip

"""Accuracy of decoded texts: character error rate, word error rate and exact match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hybrid_deploy.accuracy.bootstrap import Counts, Interval, interval_of, interval_of_change
from hybrid_deploy.accuracy.error_counts import character_errors, exact_matches, word_errors
from hybrid_deploy.accuracy.normalizers import AS_DECODED, Normalizer
from hybrid_deploy.accuracy.scripts import has_words
from hybrid_deploy.errors import InputError

RATES = ("cer", "wer", "exact")
"""Names of the rates: character error rate, word error rate, and share of exact texts."""


@dataclass(frozen=True)
class ComparedTexts:
    """Texts that were compared with the expected ones, as counts of each text.

    Attributes:
        rates: the counts of each rate of `RATES` that could be measured, by its name.
        normalizer: name of the normaliser of both texts.
    """

    rates: Mapping[str, Counts]
    normalizer: str


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of texts against the expected ones, with 95 % intervals over the inputs.

    Attributes:
        lines: number of texts that were compared.
        cer_percent: errors (characters substituted, deleted or inserted) per expected character,
            in percent.
        exact_percent: share of the texts without any error, in percent.
        wer_percent: word errors per expected word, in percent; None if no expected text has several
            words, because each word error is then an inexact text, and for scripts without spaces.
        normalizer: name of the normaliser of both texts.
        intervals: the interval of each rate in percent, by its name; empty for a single text.
    """

    lines: int
    cer_percent: float
    exact_percent: float
    wer_percent: float | None = None
    normalizer: str = AS_DECODED.name
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def percents(self) -> dict[str, float]:
        """Each rate that was measured, in percent, by its name."""
        rates = zip(RATES, (self.cer_percent, self.wer_percent, self.exact_percent), strict=True)
        return {name: percent for name, percent in rates if percent is not None}


@dataclass(frozen=True)
class Change:
    """The difference of a rate from that of a reference on the same inputs.

    Attributes:
        points: rate minus the reference's, in percentage points.
        interval: 95 % interval of the points, paired; None for a single input.
    """

    points: float
    interval: Interval | None


def compare_texts(
    expected: Sequence[str], actual: Sequence[str], normalizer: Normalizer = AS_DECODED
) -> ComparedTexts:
    """Returns the errors of texts, each compared with the expected text at its index.

    Args:
        expected: the true texts.
        actual: the decoded texts, in the same order.
        normalizer: what both pass before they are compared.

    Raises:
        InputError: all the expected texts are empty.
        MissingDependencyError: jiwer is not installed.
    """
    true, decoded = normalized(expected, normalizer), normalized(actual, normalizer)
    if not any(true):
        raise InputError(
            "every expected text is empty, so there is no error rate; check the labels"
            if not any(text.strip() for text in expected)
            else f"every expected text is empty once {normalizer.name} has normalised it, so there "
            "is no error rate; check the labels, or give --normalize none"
        )
    rates = {"cer": character_errors(true, decoded)}
    if has_words(true):
        rates["wer"] = word_errors(true, decoded)
    return ComparedTexts(rates | {"exact": exact_matches(true, decoded)}, normalizer.name)


def compare_exactly(
    expected: Sequence[str], actual: Sequence[str], normalizer: Normalizer = AS_DECODED
) -> ComparedTexts:
    """Returns which texts equal the expected ones; it needs no package and no characters."""
    true, decoded = normalized(expected, normalizer), normalized(actual, normalizer)
    return ComparedTexts({"exact": exact_matches(true, decoded)}, normalizer.name)


def normalized(texts: Sequence[str], normalizer: Normalizer) -> list[str]:
    """Returns the texts in the form that is compared."""
    return [normalizer(text) for text in texts]


def measure_accuracy(
    expected: Sequence[str], actual: Sequence[str], normalizer: Normalizer = AS_DECODED
) -> Accuracy:
    """Returns the accuracy of texts, each compared with the expected text at its index.

    Raises:
        InputError: all the expected texts are empty.
        MissingDependencyError: jiwer is not installed.
    """
    return accuracy_of(compare_texts(expected, actual, normalizer))


def accuracy_of(compared: ComparedTexts) -> Accuracy:
    """Returns the rates of compared texts, with their intervals."""
    rates = compared.rates
    return Accuracy(
        lines=len(rates["exact"].parts),
        cer_percent=rates["cer"].percent,
        exact_percent=rates["exact"].percent,
        wer_percent=rates["wer"].percent if "wer" in rates else None,
        normalizer=compared.normalizer,
        intervals=intervals_of(compared),
    )


def intervals_of(compared: ComparedTexts) -> dict[str, Interval]:
    """Returns the interval of each rate by its name; none for a single text."""
    intervals = {name: interval_of(counts) for name, counts in compared.rates.items()}
    return {name: interval for name, interval in intervals.items() if interval is not None}


def changes_of(compared: ComparedTexts, reference: ComparedTexts) -> dict[str, Change]:
    """Returns the change of each rate against a reference that decoded the same inputs."""
    changes = {}
    for name in (name for name in RATES if name in compared.rates and name in reference.rates):
        counts, others = compared.rates[name], reference.rates[name]
        points = counts.percent - others.percent
        changes[name] = Change(points, interval_of_change(counts, others))
    return changes

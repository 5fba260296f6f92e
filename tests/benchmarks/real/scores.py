"""The accuracy of a row, and whether it is shown to be float's."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hybrid_deploy.accuracy.bootstrap import Interval, interval_of
from hybrid_deploy.accuracy.error_rates import Change, changes_of, compare_texts
from hybrid_deploy.accuracy.normalizers import Normalizer
from hybrid_deploy.calibration.evaluation.token_agreement import Agreement, compare_tokens
from tests.benchmarks.real.row import DecodedFile

MOST_POINTS = 0.5
"""Largest loss of word error rate, in points, that still counts as none."""


@dataclass(frozen=True)
class Score:
    """The accuracy of one row on some recordings.

    Attributes:
        wer_percent: word errors per expected word, in percent.
        interval: its 95 % interval over the recordings; None for one recording.
        change: its difference to float's with the paired interval; None without float's row.
        agreement: tokens and texts as in float; None without float's row.
    """

    wer_percent: float
    interval: Interval | None
    change: Change | None
    agreement: Agreement | None

    @property
    def holds(self) -> bool:
        """Whether the interval shows that not more than `MOST_POINTS` are lost."""
        if self.change is None or self.change.interval is None:
            return False
        return self.change.interval.high <= MOST_POINTS


def score(
    texts: Sequence[str],
    files: Sequence[DecodedFile],
    reference: Sequence[DecodedFile] | None,
    normalizer: Normalizer,
) -> Score:
    """Returns the accuracy of decoded recordings.

    Args:
        texts: the true texts.
        files: the decoded recordings, in the same order.
        reference: the recordings as float decodes them; None if that is not known yet.
        normalizer: what texts pass before they are compared.
    """
    compared = compare_texts(texts, [file.text for file in files], normalizer)
    counts = compared.rates["wer"]
    change = agreement = None
    if reference is not None:
        floats = compare_texts(texts, [file.text for file in reference], normalizer)
        change = changes_of(compared, floats)["wer"]
        pairs = [(a.tokens, b.tokens) for a, b in zip(files, reference, strict=True)]
        agreement = compare_tokens(pairs)
    return Score(counts.percent, interval_of(counts), change, agreement)


@dataclass(frozen=True)
class Speed:
    """The times of one row.

    Attributes:
        encoder_ms: median of the encoder.
        token_ms: median over the recordings of the time per step; the end token is a step too.
        real_time_factor: time of encoder and decoder per second of sound.
    """

    encoder_ms: float
    token_ms: float
    real_time_factor: float


def speed(files: Sequence[DecodedFile]) -> Speed:
    """Returns the times of decoded recordings."""
    busy_ms = sum(file.encoder_ms + file.decode_ms for file in files)
    return Speed(
        statistics.median(file.encoder_ms for file in files),
        statistics.median(file.decode_ms / (len(file.tokens) + 1) for file in files),
        busy_ms / 1e3 / sum(file.seconds for file in files),
    )

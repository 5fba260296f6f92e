"""The value of one metric for a variant and for its reference, with its intervals."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.accuracy.bootstrap import (
    RESAMPLES,
    Interval,
    draws,
    interval_of,
    interval_of_change,
    interval_of_values,
)
from hybrid_deploy.accuracy.error_rates import normalized
from hybrid_deploy.accuracy.normalizers import Normalizer
from hybrid_deploy.calibration.evaluation.metrics import Metric
from hybrid_deploy.errors import HybridDeployError

MOST_SECONDS = 5.0
"""Longest time for the intervals of a metric of the user."""

_FEWER_RESAMPLES = 200


@dataclass(frozen=True)
class Score:
    """The value of one metric for the variant and for its reference.

    Attributes:
        metric: the metric.
        value: its value for the texts of the variant.
        reference: its value for the texts of the reference variant.
        interval: 95 % interval of `value` over the inputs; None for a single input, and for a
            function of the user that is slow or fails on some of the resamples.
        drop_interval: 95 % interval of `drop`, paired; None as `interval`.
    """

    metric: Metric
    value: float
    reference: float
    interval: Interval | None = None
    drop_interval: Interval | None = None

    @property
    def drop(self) -> float:
        """How much worse the variant is, in units of the metric; negative if it is better."""
        return self.metric.drop(self.reference, self.value)


def measure_score(
    metric: Metric,
    expected: Sequence[str],
    decoded: Sequence[str],
    reference: Sequence[str],
    normalizer: Normalizer,
) -> Score:
    """Returns the value of a metric for the texts of a variant and of its reference.

    Args:
        metric: a built-in metric, which compares normalised texts, or a function of the user, which
            gets the texts as they are.
        expected: the true texts.
        decoded: texts of the variant, in the same order.
        reference: texts of the reference, in the same order.
        normalizer: what texts pass before a built-in metric compares them.

    Raises:
        UsageError: the metric fails, or returns no finite number.
    """
    if metric.counts is None:
        value, other = metric.measure(expected, decoded), metric.measure(expected, reference)
        intervals = _of_function(metric, expected, decoded, reference)
        return Score(metric, value, other, *intervals)
    true, *texts = (normalized(part, normalizer) for part in (expected, decoded, reference))
    counts, others = (metric.counts(true, part) for part in texts)
    change = interval_of_change(counts, others)
    return Score(
        metric, counts.percent, others.percent, interval_of(counts), _as_drop(metric, change)
    )


def _as_drop(metric: Metric, change: Interval | None) -> Interval | None:
    """Returns the interval of a drop from that of value minus reference."""
    return change.negated() if change is not None and metric.larger_is_better else change


def _of_function(
    metric: Metric, expected: Sequence[str], decoded: Sequence[str], reference: Sequence[str]
) -> tuple[Interval | None, Interval | None]:
    """Returns the intervals of a user's metric and of its drop; None if they cannot be had soon."""
    began = time.perf_counter()
    metric.measure(expected, decoded)
    seconds = 2 * (time.perf_counter() - began)  # of one resample
    resamples = next((n for n in (RESAMPLES, _FEWER_RESAMPLES) if n * seconds <= MOST_SECONDS), 0)
    if len(expected) < 2 or not resamples:
        return None, None
    values = _resampled(metric, expected, decoded, reference, resamples)
    if values is None:
        return None, None
    change = interval_of_values(values[0] - values[1])
    return interval_of_values(values[0]), _as_drop(metric, change)


def _resampled(
    metric: Metric,
    expected: Sequence[str],
    decoded: Sequence[str],
    reference: Sequence[str],
    resamples: int,
) -> NDArray[np.float64] | None:
    """Returns values (2, resamples) of variant and reference; None if a call fails or time ends."""
    deadline = time.perf_counter() + MOST_SECONDS
    values = []
    for drawn in (row for block in draws(len(expected), resamples) for row in block):
        if time.perf_counter() > deadline:
            return None
        true, ours, theirs = ([part[i] for i in drawn] for part in (expected, decoded, reference))
        try:
            values.append((metric.measure(true, ours), metric.measure(true, theirs)))
        except HybridDeployError:  # such as a draw without any character
            return None
    pairs: NDArray[np.float64] = np.array(values).T
    return pairs

"""How the range of an activation is chosen from its statistics.

A range that covers everything wastes int8 steps on rare outliers; one that cuts too much off
distorts them. The methods differ in what they weigh.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.calibration.statistics.kl_divergence import least_divergence_bound
from hybrid_deploy.calibration.statistics.ranges import Range
from hybrid_deploy.calibration.statistics.tensor_statistics import UPPER_BOUNDS, TensorStatistics
from hybrid_deploy.errors import UsageError

PERCENTILE = 99.99
"""Share of the magnitudes that `percentile` keeps, in percent."""

AVERAGING = 0.01
"""Weight of each new sample in `moving-average`, as in PyTorch's observer of that name."""

_LEVELS = 127  # positive steps of symmetric int8
_OCTAVES_TRIED = 6  # bounds down to a 64th of the largest magnitude
_BOUNDS_PER_OCTAVE = 16
_POINTS = np.array([0.125, 0.375, 0.625, 0.875])  # of a bin, where errors are taken


def minmax(statistics: TensorStatistics) -> Range:
    """Covers everything."""
    return Range(statistics.low, statistics.high)


def moving_average(statistics: TensorStatistics) -> Range:
    """Averages the extremes of the samples, in the samples' order."""
    low, high = statistics.low, statistics.high  # refuses what was never observed
    for number, sample in enumerate(sorted(statistics.extremes)):
        smallest, largest = statistics.extremes[sample]
        weight = AVERAGING if number else 1.0
        low, high = low + weight * (smallest - low), high + weight * (largest - high)
    return Range(low, high)


def percentile(statistics: TensorStatistics) -> Range:
    """Covers PERCENTILE of all magnitudes, at most one bin more."""
    counts = statistics.counts
    wanted = PERCENTILE / 100 * int(counts.sum())
    return _cut(statistics, UPPER_BOUNDS[int(np.searchsorted(np.cumsum(counts), wanted))])


def mse(statistics: TensorStatistics) -> Range:
    """Makes the mean squared error of the quantized numbers least."""
    largest = max(abs(statistics.low), abs(statistics.high))
    if largest <= UPPER_BOUNDS[0]:
        return _cut(statistics, largest)
    held = _held(statistics, largest)
    tried = largest * 2.0 ** (-np.arange(_OCTAVES_TRIED * _BOUNDS_PER_OCTAVE) / _BOUNDS_PER_OCTAVE)
    errors = [_squared_error(*held, float(bound)) for bound in tried]
    return _cut(statistics, float(tried[int(np.argmin(errors))]))


def entropy(statistics: TensorStatistics) -> Range:
    """Makes the distribution of the quantized numbers most like the original (Kullback-Leibler)."""
    largest = max(abs(statistics.low), abs(statistics.high))
    counts, lower, upper = _held(statistics, largest)
    some = lower > 0  # the first bin holds the zeros
    if not some.any():
        return _cut(statistics, largest)
    return _cut(statistics, least_divergence_bound(counts[some], lower[some], upper[some], largest))


_METHODS: dict[str, Callable[[TensorStatistics], Range]] = {
    "minmax": minmax,
    "moving-average": moving_average,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}
METHODS = tuple(_METHODS)


def range_method(name: str) -> Callable[[TensorStatistics], Range]:
    """Returns the method of that name.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    if name not in _METHODS:
        raise UsageError(f"unknown method {name!r}; choose one of: {', '.join(METHODS)}")
    return _METHODS[name]


_Floats = NDArray[np.float64]


def _held(
    statistics: TensorStatistics, largest: float
) -> tuple[NDArray[np.int64], _Floats, _Floats]:
    """Returns the bins that hold something: counts, smallest and largest magnitudes."""
    held = np.flatnonzero(statistics.counts)
    upper = np.minimum(UPPER_BOUNDS[held], largest)
    lower = np.where(held > 0, UPPER_BOUNDS[held - 1], 0.0)
    return statistics.counts[held], lower, upper


def _cut(statistics: TensorStatistics, bound: float) -> Range:
    low, high = statistics.low, statistics.high
    return Range(max(low, -float(bound)), min(high, float(bound)))


def _squared_error(
    counts: NDArray[np.int64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    bound: float,
) -> float:
    scale = bound / _LEVELS
    points = lower[:, None] + (upper - lower)[:, None] * _POINTS
    quantized = np.minimum(np.round(points / scale), _LEVELS) * scale
    return float((counts * ((points - quantized) ** 2).mean(1)).sum())

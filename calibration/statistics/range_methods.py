"""The methods that choose the range of an activation from its statistics.

A range that covers all values spends int8 steps on rare outliers; a narrower range clips values.
Each method balances the two in its own way.
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
"""Share of the magnitudes that `percentile` covers, in percent."""

AVERAGING = 0.01
"""Weight of each new sample in `moving-average`, as in PyTorch's MovingAverageMinMaxObserver."""

_LEVELS = 127  # positive steps of symmetric int8
_OCTAVES_TRIED = 6  # `mse` tries bounds down to a 64th of the largest magnitude
_BOUNDS_PER_OCTAVE = 16
_POINTS = np.array([0.125, 0.375, 0.625, 0.875])  # where `mse` takes errors, in widths of a bin


def minmax(statistics: TensorStatistics) -> Range:
    """Returns the range from the smallest to the largest value."""
    return Range(statistics.low, statistics.high)


def moving_average(statistics: TensorStatistics) -> Range:
    """Returns the exponential moving average of the samples' extremes, in the samples' order."""
    low, high = statistics.low, statistics.high  # raises an error if nothing was observed
    for position, sample in enumerate(sorted(statistics.extremes)):
        smallest, largest = statistics.extremes[sample]
        weight = AVERAGING if position else 1.0
        low, high = low + weight * (smallest - low), high + weight * (largest - high)
    return Range(low, high)


def percentile(statistics: TensorStatistics) -> Range:
    """Returns the range that covers PERCENTILE of all magnitudes, rounded up to a whole bin."""
    counts = statistics.counts
    covered = PERCENTILE / 100 * int(counts.sum())
    return _clipped_range(
        statistics, UPPER_BOUNDS[int(np.searchsorted(np.cumsum(counts), covered))]
    )


def mse(statistics: TensorStatistics) -> Range:
    """Returns the range with the least mean squared error of the quantized values."""
    largest = max(abs(statistics.low), abs(statistics.high))
    if largest <= UPPER_BOUNDS[0]:
        return _clipped_range(statistics, largest)
    bins = _occupied_bins(statistics, largest)
    octaves = np.arange(_OCTAVES_TRIED * _BOUNDS_PER_OCTAVE) / _BOUNDS_PER_OCTAVE
    bounds = largest * 2.0 ** (-octaves)
    errors = [_squared_error(*bins, float(bound)) for bound in bounds]
    return _clipped_range(statistics, float(bounds[int(np.argmin(errors))]))


def entropy(statistics: TensorStatistics) -> Range:
    """Returns the range with the least Kullback-Leibler divergence of the quantized values."""
    largest = max(abs(statistics.low), abs(statistics.high))
    counts, lower, upper = _occupied_bins(statistics, largest)
    nonzero = lower > 0  # the first bin holds the zeros
    if not nonzero.any():
        return _clipped_range(statistics, largest)
    bound = least_divergence_bound(counts[nonzero], lower[nonzero], upper[nonzero], largest)
    return _clipped_range(statistics, bound)


_METHODS: dict[str, Callable[[TensorStatistics], Range]] = {
    "minmax": minmax,
    "moving-average": moving_average,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}
METHODS = tuple(_METHODS)


def range_method(name: str) -> Callable[[TensorStatistics], Range]:
    """Returns the method of that name: a function from statistics to a range.

    Raises:
        UsageError: there is no such method; the message lists all methods.
    """
    if name not in _METHODS:
        raise UsageError(f"unknown method {name!r}; choose one of: {', '.join(METHODS)}")
    return _METHODS[name]


_Floats = NDArray[np.float64]


def _occupied_bins(
    statistics: TensorStatistics, largest: float
) -> tuple[NDArray[np.int64], _Floats, _Floats]:
    """Returns counts, smallest and largest magnitudes of the bins that are not empty."""
    occupied = np.flatnonzero(statistics.counts)
    upper = np.minimum(UPPER_BOUNDS[occupied], largest)
    lower = np.where(occupied > 0, UPPER_BOUNDS[occupied - 1], 0.0)
    return statistics.counts[occupied], lower, upper


def _clipped_range(statistics: TensorStatistics, bound: float) -> Range:
    """Returns the range of all values, limited to magnitudes up to a bound."""
    low, high = statistics.low, statistics.high
    return Range(max(low, -float(bound)), min(high, float(bound)))


def _squared_error(
    counts: NDArray[np.int64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    bound: float,
) -> float:
    """Returns the summed squared error of int8 with that bound, from points within each bin."""
    scale = bound / _LEVELS
    points = lower[:, None] + (upper - lower)[:, None] * _POINTS
    quantized = np.minimum(np.round(points / scale), _LEVELS) * scale
    return float((counts * ((points - quantized) ** 2).mean(1)).sum())

"""The bound that changes a distribution least when it is quantized, by Kullback-Leibler divergence.

Migacz, 8-bit inference with TensorRT (2017): over 2048 even bins, what is cut off counts for the
last bin, the rest is merged into the 128 magnitudes of int8 and spread again over the bins that
held something. Zeros, of which a Relu makes many, are exact in any scale and do not count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BINS, _LEVELS = 2048, 128
_STEP = 16  # of the bounds tried, in bins


def least_divergence_bound(
    counts: NDArray[np.int64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    largest: float,
) -> float:
    """Returns the bound, at least a 16th of the largest magnitude.

    Args:
        counts: (bins,) of a histogram of magnitudes, zeros left out.
        lower: (bins,) smallest magnitude of each bin.
        upper: (bins,) largest magnitude of each bin.
        largest: magnitude.
    """
    even = _even_bins(counts, lower, upper, largest)
    ends = range(_LEVELS, _BINS + 1, _STEP)
    divergences = [_divergence(even, end) for end in ends]
    return largest * ends[int(np.argmin(divergences))] / _BINS


def _even_bins(
    counts: NDArray[np.int64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    largest: float,
) -> NDArray[np.float64]:
    """Spreads counts evenly over bins of equal width."""
    edges = np.linspace(0, largest, _BINS + 1)
    knots = np.concatenate([[lower[0]], upper])
    below = np.concatenate([[0.0], np.cumsum(counts)])
    return np.diff(np.interp(edges, knots, below))


def _divergence(even: NDArray[np.float64], end: int) -> float:
    """Returns the divergence in nats if everything from bin `end` on is cut off."""
    wanted = even[:end].copy()
    wanted[-1] += even[end:].sum()
    level = np.arange(end) * _LEVELS // end
    held = even[:end] > 0
    mass = np.bincount(level, weights=even[:end], minlength=_LEVELS)
    room = np.bincount(level, weights=held, minlength=_LEVELS)
    spread = np.where(held, mass[level] / np.maximum(room[level], 1), 0.0)
    if not spread.any():
        return float("inf")
    p, q = wanted / wanted.sum(), spread / spread.sum()
    some = p > 0
    # a bin that holds only what was cut off would be infinitely unlikely: as in the source, it is
    # given next to nothing
    floor = np.finfo(np.float32).eps
    return float((p[some] * np.log(p[some] / np.maximum(q[some], floor))).sum())

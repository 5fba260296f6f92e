"""Chooses the bound of a range by the least Kullback-Leibler divergence.

After Migacz, 8-bit inference with TensorRT (2017). The histogram of magnitudes has 2048 bins of
equal width. For each bound that is tried, the counts beyond the bound are added to the last bin
within it. This distribution is compared with its quantized form: the bins within the bound are
merged into the 128 magnitudes of int8, and each merged count is spread evenly over those of its
bins that were not empty. Zeros are left out: they are exact with any scale, and a Relu makes many.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BINS, _LEVELS = 2048, 128
_STEP = 16  # distance between two tried bounds, in bins


def least_divergence_bound(
    counts: NDArray[np.int64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    largest: float,
) -> float:
    """Returns the bound of least divergence, at least a 16th of the largest magnitude.

    Args:
        counts: (bins,) int64, a histogram of the magnitudes without zeros.
        lower: (bins,) float64, smallest magnitude of each bin.
        upper: (bins,) float64, largest magnitude of each bin.
        largest: the largest magnitude of all.
    """
    histogram = _even_bins(counts, lower, upper, largest)
    ends = range(_LEVELS, _BINS + 1, _STEP)
    divergences = [_divergence(histogram, end) for end in ends]
    return largest * ends[int(np.argmin(divergences))] / _BINS


def _even_bins(
    counts: NDArray[np.int64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    largest: float,
) -> NDArray[np.float64]:
    """Returns the histogram over `_BINS` bins of equal width; a bin's counts spread evenly."""
    edges = np.linspace(0, largest, _BINS + 1)
    knots = np.concatenate([[lower[0]], upper])
    below = np.concatenate([[0.0], np.cumsum(counts)])
    return np.diff(np.interp(edges, knots, below))


def _divergence(histogram: NDArray[np.float64], end: int) -> float:
    """Returns the divergence in nats if magnitudes from bin `end` on are clipped."""
    clipped = histogram[:end].copy()
    clipped[-1] += histogram[end:].sum()
    level = np.arange(end) * _LEVELS // end
    occupied = histogram[:end] > 0
    level_counts = np.bincount(level, weights=histogram[:end], minlength=_LEVELS)
    level_bins = np.bincount(level, weights=occupied, minlength=_LEVELS)
    quantized = np.where(occupied, level_counts[level] / np.maximum(level_bins[level], 1), 0.0)
    if not quantized.any():
        return float("inf")
    p, q = clipped / clipped.sum(), quantized / quantized.sum()
    possible = p > 0
    # a last bin that holds only clipped counts has q = 0, an infinite divergence; as in the source,
    # q gets a tiny value instead
    floor = np.finfo(np.float32).eps
    return float((p[possible] * np.log(p[possible] / np.maximum(q[possible], floor))).sum())

"""The largest of many numbers, without sorting all of them."""

from __future__ import annotations

import numpy as np

from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray

_ROWS = 64


def top_k_indices(values: FloatArray, count: int) -> IntArray:
    """Returns the indices of the `count` largest numbers, (count,), the largest number first.

    The numbers are laid out in rows. The `count` largest lie in the `count` columns with the
    largest maxima, so that only those columns and the incomplete last row are sorted.

    Args:
        values: (n,) float32, none of them NaN.
        count: 1 to n.
    """
    columns = len(values) // _ROWS
    if columns <= 2 * count:
        return _sorted_top(values, np.arange(len(values)), count)
    size = columns * _ROWS
    maxima = values[:size].reshape(_ROWS, columns).max(0)
    best_columns = np.argpartition(maxima, -count)[-count:]
    indices = (np.arange(_ROWS)[:, None] * columns + best_columns).ravel()
    return _sorted_top(values, np.concatenate([indices, np.arange(size, len(values))]), count)


def _sorted_top(values: FloatArray, indices: IntArray, count: int) -> IntArray:
    candidates = values[indices]
    if count < len(indices):
        top = np.argpartition(candidates, -count)[-count:]
        candidates, indices = candidates[top], indices[top]
    order: IntArray = indices[np.lexsort((indices, -candidates))]
    return order

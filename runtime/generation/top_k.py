"""The largest of many numbers, without sorting the rest."""

from __future__ import annotations

import numpy as np

from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray

_FOLDS = 64


def top_k_indices(values: FloatArray, count: int) -> IntArray:
    """Returns the places of the `count` largest numbers, the largest first.

    Those lie in the `count` columns with the largest maxima, if the numbers are laid out in rows:
    so one quick pass over all numbers is enough.

    Args:
        values: (any number,), none of them NaN.
        count: at least 1, at most as many as there are.
    """
    columns = len(values) // _FOLDS
    if columns <= 2 * count:
        return _sorted(values, np.arange(len(values)), count)
    whole = columns * _FOLDS
    tops = values[:whole].reshape(_FOLDS, columns).max(0)
    chosen = np.argpartition(tops, -count)[-count:]
    inside = (np.arange(_FOLDS)[:, None] * columns + chosen).ravel()
    return _sorted(values, np.concatenate([inside, np.arange(whole, len(values))]), count)


def _sorted(values: FloatArray, places: IntArray, count: int) -> IntArray:
    few = values[places]
    if count < len(places):
        kept = np.argpartition(few, -count)[-count:]
        few, places = few[kept], places[kept]
    order: IntArray = places[np.lexsort((places, -few))]
    return order

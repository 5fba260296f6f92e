"""Second moments of a tensor that is the input of a matrix product: E[x x^T] over its rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


class SecondMoments:
    """The mean outer product of the rows of one tensor with themselves.

    Attributes:
        sums: (channels, channels) float64, sum of the outer products; empty before the first row.
        rows: number of observed rows.
    """

    def __init__(self) -> None:
        self.sums: NDArray[np.float64] = np.zeros((0, 0))
        self.rows = 0

    @property
    def mean(self) -> NDArray[np.float64]:
        """(channels, channels) float64; at least one row must have been observed."""
        return self.sums / self.rows

    def observe(self, array: NDArray[np.float32], sample: int) -> None:
        """Adds the rows of an array (..., channels); the sample does not matter."""
        rows = array.reshape(-1, array.shape[-1]).astype(np.float64)
        self._add(rows.T @ rows, len(rows))

    def merge(self, other: SecondMoments) -> None:
        """Adds the rows of another tensor with the same channels."""
        if other.rows:
            self._add(other.sums, other.rows)

    def _add(self, sums: NDArray[np.float64], rows: int) -> None:
        self.sums = self.sums + sums if self.rows else sums
        self.rows += rows


WeightMoments = Mapping[bytes, SecondMoments]
"""The second moments of a weight's inputs, by the weight's key (`qdq.layers.weight_key`)."""

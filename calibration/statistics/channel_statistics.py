"""Statistics of the channels of a tensor that is the input of a matrix product.

A channel is an index of the last axis. The largest and the mean magnitude of each channel decide
how much of its scale moves into the weight (Xiao et al., SmoothQuant, 2022; Lin et al., AWQ, 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_UNITS_PER_ONE = 2.0**24
_LARGEST_SUM = 2**61  # the sum of two of them fits int64


@dataclass(frozen=True)
class Channels:
    """The magnitudes of each channel.

    Attributes:
        largest: (channels,) float32, largest magnitude of each channel.
        mean: (channels,) float32, mean magnitude of each channel.
    """

    largest: NDArray[np.float32]
    mean: NDArray[np.float32]


class ChannelStatistics:
    """Statistics by channel; merging is exact, so its order does not matter.

    Attributes:
        largest: (channels,) float32, largest magnitude of each channel.
        sums: (channels,) int64, sum of the magnitudes of each channel in units of 2^-24; a sum is
            limited to 2^61, which is a total of 1.4e11.
        rows: number of observed values of each channel.
    """

    def __init__(self) -> None:
        self.largest: NDArray[np.float32] = np.zeros(0, np.float32)
        self.sums: NDArray[np.int64] = np.zeros(0, np.int64)
        self.rows = 0

    def summary(self) -> Channels:
        """Returns the largest and mean magnitudes; at least one row must have been observed."""
        mean = self.sums / (self.rows * _UNITS_PER_ONE)
        return Channels(self.largest, mean.astype(np.float32))

    def observe(self, magnitudes: NDArray[np.float64]) -> None:
        """Adds magnitudes, (rows, channels) float64; each of them must be a float32 number."""
        sums = np.rint(magnitudes * _UNITS_PER_ONE).sum(axis=0)
        self._add(
            magnitudes.max(axis=0).astype(np.float32),
            np.minimum(sums, _LARGEST_SUM).astype(np.int64),
            len(magnitudes),
        )

    def merge(self, other: ChannelStatistics) -> None:
        """Adds statistics of the same tensor from another run."""
        if other.rows:
            self._add(other.largest, other.sums, other.rows)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the statistics as arrays by name, to be written to a file."""
        return {"largest": self.largest, "sums": self.sums, "rows": np.array(self.rows, np.int64)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ChannelStatistics:
        """Returns the statistics that `arrays` returned; they keep the arrays without a copy."""
        statistics = cls()
        statistics.largest, statistics.sums = arrays["largest"], arrays["sums"]
        statistics.rows = int(arrays["rows"])
        return statistics

    def _add(self, largest: NDArray[np.float32], sums: NDArray[np.int64], rows: int) -> None:
        if self.rows:
            largest = np.maximum(self.largest, largest)
            sums = np.minimum(self.sums + sums, _LARGEST_SUM)
        self.largest, self.sums, self.rows = largest, sums, self.rows + rows

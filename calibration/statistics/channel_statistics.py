"""What each channel of a tensor held, in numbers that add up: the last axis of a product's input.

Largest and mean magnitudes are what moving the scale of a channel into the weight starts from
(Xiao et al., SmoothQuant, 2022; Lin et al., AWQ, 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_UNITS_PER_ONE = 2.0**24
_LARGEST_SUM = 2**61  # two of them do not overflow


@dataclass(frozen=True)
class Channels:
    """Magnitudes by channel.

    Attributes:
        largest: (channels,) float32.
        mean: (channels,) float32.
    """

    largest: NDArray[np.float32]
    mean: NDArray[np.float32]


class ChannelStatistics:
    """Magnitudes by index of the last axis; adding up is exact, in whatever order.

    Attributes:
        largest: (channels,) float32.
        sums: (channels,) int64 in units of 2^-24; a sum stays at 2^61 (a total of 1.4e11).
        rows: how many numbers there were of each channel.
    """

    def __init__(self) -> None:
        self.largest: NDArray[np.float32] = np.zeros(0, np.float32)
        self.sums: NDArray[np.int64] = np.zeros(0, np.int64)
        self.rows = 0

    def summary(self) -> Channels:
        """Returns what was observed; at least one row."""
        mean = self.sums / (self.rows * _UNITS_PER_ONE)
        return Channels(self.largest, mean.astype(np.float32))

    def observe(self, magnitudes: NDArray[np.float64]) -> None:
        """Adds magnitudes that are float32 numbers, (rows, channels)."""
        sums = np.rint(magnitudes * _UNITS_PER_ONE).sum(axis=0)
        self._add(
            magnitudes.max(axis=0).astype(np.float32),
            np.minimum(sums, _LARGEST_SUM).astype(np.int64),
            len(magnitudes),
        )

    def merge(self, other: ChannelStatistics) -> None:
        """Adds what was observed elsewhere of the same tensor."""
        if other.rows:
            self._add(other.largest, other.sums, other.rows)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the statistics as arrays, to be written to disk."""
        return {"largest": self.largest, "sums": self.sums, "rows": np.array(self.rows, np.int64)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ChannelStatistics:
        """Reads what `arrays` gave."""
        made = cls()
        made.largest, made.sums = arrays["largest"], arrays["sums"]
        made.rows = int(arrays["rows"])
        return made

    def _add(self, largest: NDArray[np.float32], sums: NDArray[np.int64], rows: int) -> None:
        if self.rows:
            largest = np.maximum(self.largest, largest)
            sums = np.minimum(self.sums + sums, _LARGEST_SUM)
        self.largest, self.sums, self.rows = largest, sums, self.rows + rows

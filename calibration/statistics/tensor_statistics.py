"""What a tensor held, in a form that adds up: shards and interrupted runs give what one run gives.

Every method of choosing a range works from the same statistics, so that samples are run once. All
numbers in them are counts and extremes: adding them up is exact, in whatever order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.calibration.statistics.channel_statistics import ChannelStatistics
from hybrid_deploy.errors import CalibrationError

BINS_PER_OCTAVE = 256
"""A bin of the histogram is 0.27 % wide: a third of the largest step of int8."""

_OCTAVES = (-40, 40)  # magnitudes from 1e-12 to 1e12 are told apart
_BINS = (_OCTAVES[1] - _OCTAVES[0]) * BINS_PER_OCTAVE + 1

UPPER_BOUNDS: NDArray[np.float64] = 2.0 ** (np.arange(_BINS) / BINS_PER_OCTAVE + _OCTAVES[0])
"""The largest magnitude of each bin; the first bin holds zeros too."""


class TensorStatistics:
    """A histogram of magnitudes in fixed logarithmic bins, and the extremes of every sample.

    Attributes:
        tensor: what it is called in messages.
        counts: (bins,) int64, how many magnitudes fell into each bin of UPPER_BOUNDS.
        extremes: smallest and largest number, by the index of the sample.
        channels: what each index of the last axis held, if that is wanted.
    """

    def __init__(self, tensor: str, *, by_channel: bool = False) -> None:
        self.tensor = tensor
        self.channels = ChannelStatistics() if by_channel else None
        self.counts: NDArray[np.int64] = np.zeros(_BINS, np.int64)
        self.extremes: dict[int, tuple[float, float]] = {}

    @property
    def low(self) -> float:
        """The smallest number.

        Raises:
            CalibrationError: nothing was observed.
        """
        return min(low for low, _ in self._seen().values())

    @property
    def high(self) -> float:
        """The largest number.

        Raises:
            CalibrationError: nothing was observed.
        """
        return max(high for _, high in self._seen().values())

    def observe(self, array: NDArray[np.float32], sample: int) -> None:
        """Adds an array of any shape that the tensor held for a sample.

        Raises:
            CalibrationError: the array holds NaN or infinity.
        """
        if array.size == 0:
            return
        low, high = float(array.min()), float(array.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise CalibrationError(
                f"{self.tensor} holds NaN or infinity on these samples; "
                "check the samples, then the model's weights"
            )
        before = self.extremes.get(sample, (low, high))
        self.extremes[sample] = min(before[0], low), max(before[1], high)
        magnitude = np.abs(array.astype(np.float64).reshape(-1))
        octave = np.log2(np.maximum(magnitude, UPPER_BOUNDS[0])) - _OCTAVES[0]
        bins = np.minimum(np.ceil(octave * BINS_PER_OCTAVE), _BINS - 1).astype(np.int64)
        self.counts += np.bincount(bins, minlength=_BINS)
        if self.channels is not None:
            self.channels.observe(magnitude.reshape(-1, array.shape[-1]))

    def merge(self, other: TensorStatistics) -> None:
        """Adds what was observed of the same tensor for other samples.

        Raises:
            ValueError: both have seen the same sample.
        """
        if both := self.extremes.keys() & other.extremes.keys():
            raise ValueError(f"{self.tensor}: sample {min(both)} was observed twice")
        self.extremes |= other.extremes
        self.counts += other.counts
        if self.channels is not None and other.channels is not None:
            self.channels.merge(other.channels)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the statistics as arrays for a file: only the bins that hold something."""
        bins = np.flatnonzero(self.counts)
        order = sorted(self.extremes)
        return {
            "bins": bins,
            "counts": self.counts[bins],
            "samples": np.array(order, np.int64),
            "extremes": np.array([self.extremes[i] for i in order], np.float64).reshape(-1, 2),
            **(self.channels.arrays() if self.channels is not None else {}),
        }

    @classmethod
    def from_arrays(cls, tensor: str, arrays: Mapping[str, NDArray[Any]]) -> TensorStatistics:
        """Reads what `arrays` gave."""
        made = cls(tensor)
        if "rows" in arrays:
            made.channels = ChannelStatistics.from_arrays(arrays)
        made.counts[arrays["bins"]] = arrays["counts"]
        pairs = zip(arrays["samples"].tolist(), arrays["extremes"].tolist(), strict=True)
        made.extremes = {sample: (low, high) for sample, (low, high) in pairs}
        return made

    def _seen(self) -> dict[int, tuple[float, float]]:
        if not self.extremes:
            raise CalibrationError(f"{self.tensor} was never computed; give more samples")
        return self.extremes

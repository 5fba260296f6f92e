"""Statistics of the values of a tensor, which every method of choosing a range works from.

The statistics consist of counts and extremes, so merging them is exact and its order does not
matter: shards and interrupted runs lead to the same scales as one run.
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

_OCTAVES = (-40, 40)  # the bins cover magnitudes from 1e-12 to 1e12
_BINS = (_OCTAVES[1] - _OCTAVES[0]) * BINS_PER_OCTAVE + 1

UPPER_BOUNDS: NDArray[np.float64] = 2.0 ** (np.arange(_BINS) / BINS_PER_OCTAVE + _OCTAVES[0])
"""(bins,) float64, the largest magnitude of each bin; the first bin also holds the zeros."""


class TensorStatistics:
    """A histogram of magnitudes in fixed logarithmic bins, and the extremes of every sample.

    Attributes:
        tensor: the tensor's label in messages.
        counts: (bins,) int64, number of magnitudes in each bin of UPPER_BOUNDS.
        extremes: smallest and largest value of each sample, by the index of the sample.
        channels: statistics of each index of the last axis; None unless `by_channel`.

    Args:
        tensor: the tensor's label in messages.
        by_channel: whether to keep statistics by channel too.
    """

    def __init__(self, tensor: str, *, by_channel: bool = False) -> None:
        self.tensor = tensor
        self.channels = ChannelStatistics() if by_channel else None
        self.counts: NDArray[np.int64] = np.zeros(_BINS, np.int64)
        self.extremes: dict[int, tuple[float, float]] = {}

    @property
    def low(self) -> float:
        """The smallest value.

        Raises:
            CalibrationError: nothing was observed.
        """
        return min(low for low, _ in self._observed_extremes().values())

    @property
    def high(self) -> float:
        """The largest value.

        Raises:
            CalibrationError: nothing was observed.
        """
        return max(high for _, high in self._observed_extremes().values())

    def observe(self, array: NDArray[np.float32], sample: int) -> None:
        """Adds one value of the tensor, an array of any shape, computed for a sample.

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
        earlier = self.extremes.get(sample, (low, high))
        self.extremes[sample] = min(earlier[0], low), max(earlier[1], high)
        magnitudes = np.abs(array.astype(np.float64).reshape(-1))
        octaves = np.log2(np.maximum(magnitudes, UPPER_BOUNDS[0])) - _OCTAVES[0]
        bins = np.minimum(np.ceil(octaves * BINS_PER_OCTAVE), _BINS - 1).astype(np.int64)
        self.counts += np.bincount(bins, minlength=_BINS)
        if self.channels is not None:
            self.channels.observe(magnitudes.reshape(-1, array.shape[-1]))

    def merge(self, other: TensorStatistics) -> None:
        """Adds statistics of the same tensor over other samples; `other` stays unchanged.

        Raises:
            ValueError: both statistics have the same sample.
        """
        if both := self.extremes.keys() & other.extremes.keys():
            raise ValueError(f"{self.tensor}: sample {min(both)} was observed twice")
        self.extremes |= other.extremes
        self.counts += other.counts
        if self.channels is not None and other.channels is not None:
            self.channels.merge(other.channels)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the statistics as arrays by name for a file; empty bins are left out."""
        bins = np.flatnonzero(self.counts)
        samples = sorted(self.extremes)
        return {
            "bins": bins,
            "counts": self.counts[bins],
            "samples": np.array(samples, np.int64),
            "extremes": np.array([self.extremes[i] for i in samples], np.float64).reshape(-1, 2),
            **(self.channels.arrays() if self.channels is not None else {}),
        }

    @classmethod
    def from_arrays(cls, tensor: str, arrays: Mapping[str, NDArray[Any]]) -> TensorStatistics:
        """Returns the statistics that `arrays` returned, under that label."""
        statistics = cls(tensor)
        if "rows" in arrays:
            statistics.channels = ChannelStatistics.from_arrays(arrays)
        statistics.counts[arrays["bins"]] = arrays["counts"]
        pairs = zip(arrays["samples"].tolist(), arrays["extremes"].tolist(), strict=True)
        statistics.extremes = {sample: (low, high) for sample, (low, high) in pairs}
        return statistics

    def _observed_extremes(self) -> dict[int, tuple[float, float]]:
        """Returns the extremes, of which there is at least one."""
        if not self.extremes:
            raise CalibrationError(f"{self.tensor} was never computed; give more samples")
        return self.extremes

"""What activations hold, seen one array at a time and merged over shards.

An observer is a value: `observe` adds an array, `merge` adds another observer, `range` gives what
the int8 scale is made of. Both observers give the same result in whatever order arrays come.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.errors import CalibrationError, UsageError

_INT8_MAX, _UINT8_MAX = 127, 255
_PERCENTILE = 99.99
_BINS_PER_OCTAVE = 64  # a bin is 1.1 % wide
_OCTAVES = (-40, 40)  # magnitudes from 1e-12 to 1e12 are told apart


class Range(msgspec.Struct, frozen=True):
    """The interval that a tensor's quantized numbers are to cover."""

    low: float
    high: float

    @property
    def symmetric_scale(self) -> float:
        """Scale with the zero point 0; 1 for a tensor of zeros."""
        return _float32_scale(max(abs(self.low), abs(self.high)), _INT8_MAX)

    @property
    def unsigned_scale(self) -> float:
        """Scale of unsigned numbers over the whole interval, zero included."""
        return _float32_scale(max(self.high, 0.0) - min(self.low, 0.0), _UINT8_MAX)

    @property
    def unsigned_zero_point(self) -> int:
        """The unsigned number that stands for zero, within 0..255."""
        return min(_UINT8_MAX, round(-min(self.low, 0.0) / self.unsigned_scale))


class Observer(Protocol):
    """Sees every array that a tensor holds."""

    def observe(self, array: NDArray[np.float32]) -> None:
        """Adds an array of any shape.

        Raises:
            CalibrationError: the array holds NaN or infinity.
        """
        ...

    def range(self) -> Range:
        """Gives the interval to cover.

        Raises:
            CalibrationError: nothing was observed.
        """
        ...


class MinMaxObserver:
    """Keeps the smallest and the largest number."""

    def __init__(self, tensor: str) -> None:
        self.tensor = tensor
        self._low, self._high = np.inf, -np.inf

    def observe(self, array: NDArray[np.float32]) -> None:
        """Adds an array of any shape."""
        if array.size == 0:
            return
        low, high = float(array.min()), float(array.max())
        _check_finite(self.tensor, low, high)
        self._low, self._high = min(self._low, low), max(self._high, high)

    def merge(self, other: MinMaxObserver) -> None:
        """Adds what another observer of the same tensor saw."""
        self._low, self._high = min(self._low, other._low), max(self._high, other._high)

    def range(self) -> Range:
        """Gives the interval from the smallest to the largest number."""
        if self._low > self._high:
            raise CalibrationError(f"{self.tensor} was never computed; give more samples")
        return Range(self._low, self._high)


class PercentileObserver:
    """Leaves out the largest magnitudes: a histogram of fixed logarithmic bins.

    The bins are the same for every tensor, so that histograms of shards simply add up; a bound is
    at most one bin (1.1 %) above the exact percentile, and never above the largest magnitude.
    """

    def __init__(self, tensor: str, percentile: float = _PERCENTILE) -> None:
        self.tensor = tensor
        self._percentile = percentile
        self._extremes = MinMaxObserver(tensor)
        self._counts = np.zeros((_OCTAVES[1] - _OCTAVES[0]) * _BINS_PER_OCTAVE + 1, np.int64)

    def observe(self, array: NDArray[np.float32]) -> None:
        """Adds an array of any shape."""
        self._extremes.observe(array)
        magnitude = np.abs(array.astype(np.float64).reshape(-1))
        smallest = 2.0 ** _OCTAVES[0]
        octave = np.log2(np.maximum(magnitude, smallest)) - _OCTAVES[0]
        bins = np.minimum(np.ceil(octave * _BINS_PER_OCTAVE), len(self._counts) - 1)
        self._counts += np.bincount(bins.astype(np.int64), minlength=len(self._counts))

    def merge(self, other: PercentileObserver) -> None:
        """Adds what another observer of the same tensor saw."""
        self._extremes.merge(other._extremes)
        self._counts += other._counts

    def range(self) -> Range:
        """Gives the interval that holds the percentile of all magnitudes."""
        extremes = self._extremes.range()
        wanted = self._percentile / 100 * int(self._counts.sum())
        index = int(np.searchsorted(np.cumsum(self._counts), wanted))
        bound = 2.0 ** (index / _BINS_PER_OCTAVE + _OCTAVES[0])
        return Range(max(extremes.low, -bound), min(extremes.high, bound))


_OBSERVERS = {"minmax": MinMaxObserver, "percentile": PercentileObserver}
METHODS = tuple(_OBSERVERS)


def make_observer(method: str, tensor: str) -> Observer:
    """Gives an empty observer of that method.

    Raises:
        UsageError: there is no such method.
    """
    if method not in _OBSERVERS:
        raise UsageError(f"unknown method {method!r}; choose one of: {', '.join(METHODS)}")
    observer: Observer = _OBSERVERS[method](tensor)
    return observer


def _check_finite(tensor: str, low: float, high: float) -> None:
    if not (np.isfinite(low) and np.isfinite(high)):
        raise CalibrationError(
            f"{tensor} holds NaN or infinity on these samples; "
            "check the samples, then the model's weights"
        )


def _float32_scale(amax: float, steps: int) -> float:
    scale = float(np.float32(amax / steps))
    return scale if scale >= np.finfo(np.float32).tiny else 1.0

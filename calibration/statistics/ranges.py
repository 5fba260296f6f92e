"""The interval that a tensor's quantized numbers cover, and the scales made of it."""

from __future__ import annotations

import msgspec
import numpy as np

_INT8_MAX, _UINT8_MAX, _FLOAT8_MAX = 127, 255, 448


class Range(msgspec.Struct, frozen=True):
    """The interval that a tensor's quantized numbers are to cover."""

    low: float
    high: float

    def union(self, other: Range) -> Range:
        """Returns the smallest interval that covers both."""
        return Range(min(self.low, other.low), max(self.high, other.high))

    @property
    def symmetric_scale(self) -> float:
        """Scale with the zero point 0; 1 for a tensor of zeros."""
        return _float32_scale(max(abs(self.low), abs(self.high)), _INT8_MAX)

    @property
    def float8_scale(self) -> float:
        """Scale of floats of 8 bits (E4M3); 1 for a tensor of zeros."""
        return _float32_scale(max(abs(self.low), abs(self.high)), _FLOAT8_MAX)

    @property
    def unsigned_scale(self) -> float:
        """Scale of unsigned numbers over the whole interval, zero included."""
        return _float32_scale(max(self.high, 0.0) - min(self.low, 0.0), _UINT8_MAX)

    @property
    def unsigned_zero_point(self) -> int:
        """The unsigned number that stands for zero, within 0..255."""
        return min(_UINT8_MAX, round(-min(self.low, 0.0) / self.unsigned_scale))


def _float32_scale(amax: float, steps: int) -> float:
    scale = float(np.float32(amax / steps))
    return scale if scale >= np.finfo(np.float32).tiny else 1.0

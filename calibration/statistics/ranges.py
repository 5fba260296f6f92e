"""Ranges of tensors, and the scales and zero points that follow from them."""

from __future__ import annotations

import msgspec
import numpy as np

_INT8_MAX, _UINT8_MAX, _FLOAT8_MAX = 127, 255, 448


class Range(msgspec.Struct, frozen=True):
    """The interval of a tensor's values that its quantized numbers cover.

    Attributes:
        low: lower end of the interval, in units of the tensor.
        high: upper end of the interval, in units of the tensor.
    """

    low: float
    high: float

    def union(self, other: Range) -> Range:
        """Returns the smallest interval that covers both."""
        return Range(min(self.low, other.low), max(self.high, other.high))

    @property
    def symmetric_scale(self) -> float:
        """Scale of int8 numbers with the zero point 0; 1 for a tensor of zeros."""
        return _float32_scale(max(abs(self.low), abs(self.high)), _INT8_MAX)

    @property
    def float8_scale(self) -> float:
        """Scale of 8-bit floats (E4M3); 1 for a tensor of zeros."""
        return _float32_scale(max(abs(self.low), abs(self.high)), _FLOAT8_MAX)

    @property
    def unsigned_scale(self) -> float:
        """Scale of uint8 numbers that cover the interval and zero; 1 for a tensor of zeros."""
        return _float32_scale(max(self.high, 0.0) - min(self.low, 0.0), _UINT8_MAX)

    @property
    def unsigned_zero_point(self) -> int:
        """The uint8 number that represents zero, within 0..255."""
        return min(_UINT8_MAX, round(-min(self.low, 0.0) / self.unsigned_scale))


def _float32_scale(covered: float, steps: int) -> float:
    """Returns the float32 size of one step; 1 where it would be zero or subnormal."""
    scale = float(np.float32(covered / steps))
    return scale if scale >= np.finfo(np.float32).tiny else 1.0

"""A bound of the error of approximate logits, which a projection with low-bit weights computes.

    h   the projected row, float32          g   h as the kernel rounds it to 8 bits
    w   the weights of one token, float32   v   w as it is stored in 7 bits

The error of a logit is hw - gv = h(w - v) + (h - g)v. The bound has the form
by_norm |h| + by_spread s + fixed, with the Euclidean norm |h| of the row and its spread
s = max(h, 0) - min(h, 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_SAFE_WEIGHT = 64
"""Largest magnitude of signed weights whose products with unsigned bytes every CPU sums exactly.

On CPUs without a dot-product instruction, ONNX Runtime adds two products in int16: 2 * 255 * 64
fits into int16, 2 * 255 * 127 does not.
"""

_UINT8_STEPS = 255
_FLOAT32_ROUNDING = 1e-5  # of float32 sums of some thousand products, relative to |h| |v|
_BIAS_ROUNDING = 1e-6  # of the same sums, relative to the bias that they start from
_BOUND_ROUNDING = 1.001  # factor for the rounding errors of the bound's own arithmetic


@dataclass(frozen=True)
class ErrorBound:
    """The error bound of a logit: by_norm |h| + by_spread (max(h, 0) - min(h, 0)) + fixed.

    Attributes:
        by_norm: factor of the Euclidean norm of the projected row.
        by_spread: factor of the spread of the row's numbers, zero included.
        fixed: part that does not depend on the row.
    """

    by_norm: float
    by_spread: float
    fixed: float = 0.0


def round_to_seven_bits(
    table: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """Rounds a table (vocabulary, width) float32 to 7 bits, with one scale for each row.

    Returns:
        The integers (vocabulary, width) int8, the scales (vocabulary,) float32, and the product of
        both, (vocabulary, width) float32.
    """
    smallest = MAX_SAFE_WEIGHT * np.finfo(np.float32).tiny  # no scale is zero or denormal
    scale = np.maximum(np.abs(table).max(1), smallest) / np.float32(MAX_SAFE_WEIGHT)
    values = np.rint(table / scale[:, None])
    return values.astype(np.int8), scale, values * scale[:, None]


def guaranteed_bound(
    table: NDArray[np.float32], stored: NDArray[np.float32], largest_bias: float = 0.0
) -> ErrorBound:
    """Returns a bound that no logit exceeds, for rows rounded as DynamicQuantizeLinear rounds them.

    By the Cauchy-Schwarz inequality |h(w - v)| <= |h| |w - v|. DynamicQuantizeLinear
    (https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html) has steps of spread / 255, so
    each of the n numbers of h has an error of half a step at most, and
    |(h - g)v| <= spread / 255 / 2 sqrt(n) |v|. The rounding errors of float32 sums are added.

    Args:
        table: the exact weights, (vocabulary, width) float32.
        stored: the weights as restored from 7 bits, same shape.
        largest_bias: largest magnitude of the numbers that are added to the products.
    """
    error_norm, stored_norm = _largest_norm(table - stored), _largest_norm(stored)
    return ErrorBound(
        by_norm=_BOUND_ROUNDING * (error_norm + _FLOAT32_ROUNDING * stored_norm),
        by_spread=_BOUND_ROUNDING * stored_norm * math.sqrt(table.shape[1]) / _UINT8_STEPS / 2,
        fixed=_BIAS_ROUNDING * largest_bias,
    )


def _largest_norm(rows: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(rows, axis=1).max())

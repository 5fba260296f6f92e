"""How far logits can be off when the vocabulary projection is read in few bits.

With h the row that is projected, g what the kernel rounds it to, w a column and v its few bits, a
logit is off by hw - gv = h(w - v) + (h - g)v. Both bounds here are a |h| + b s + c, for the norm
of h and the spread s = max(h, 0) - min(h, 0) of its numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_SAFE_WEIGHT = 64
"""Largest magnitude of the integers that any CPU multiplies with unsigned bytes exactly.

Where there is no instruction for it, ONNX Runtime adds two products in 16 bits, and 2 * 255 * 64
fits these where 2 * 255 * 127 does not.
"""

_STEPS = 255
_ROUNDING = 1e-5  # of float32 sums of some thousand products, relative to |h| |w|
_BIAS_ROUNDING = 1e-6  # of the same sums, relative to the bias that begins them
_SLACK = 1.001  # for what the margin's own arithmetic loses
_DEVIATIONS = 4
_UNIFORM = math.sqrt(12)


@dataclass(frozen=True)
class ErrorBound:
    """How far a logit can be off: `by_norm` |h| + `by_spread` (max(h, 0) - min(h, 0)) + `fixed`."""

    by_norm: float
    by_spread: float
    fixed: float = 0.0


def round_to_seven_bits(
    table: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """Rounds a table (vocabulary, width) to 7 bits, one scale for each row.

    Returns:
        values (vocabulary, width), scales (vocabulary,), and the table as it is stored.
    """
    least = MAX_SAFE_WEIGHT * np.finfo(np.float32).tiny  # so that no scale is 0 or denormal
    scale = np.maximum(np.abs(table).max(1), least) / np.float32(MAX_SAFE_WEIGHT)
    values = np.rint(table / scale[:, None])
    return values.astype(np.int8), scale, values * scale[:, None]


def guaranteed_bound(
    table: NDArray[np.float32], stored: NDArray[np.float32], bias: float = 0.0
) -> ErrorBound:
    """Returns what no logit is ever off by more, for rows rounded as DynamicQuantizeLinear does.

    |h(w - v)| <= |h| |w - v| by Cauchy and Schwarz, and each of n numbers is off by half a step of
    spread / 255 at most, so that |(h - g)v| <= spread / 255 / 2 sqrt(n) |v|. What float32 itself
    loses comes to that.

    Args:
        table: (vocabulary, width).
        stored: what few bits made of it.
        bias: largest magnitude of what is added to the products.
    """
    error, norm = _largest_norm(table - stored), _largest_norm(stored)
    return ErrorBound(
        by_norm=_SLACK * (error + _ROUNDING * norm),
        by_spread=_SLACK * norm * math.sqrt(table.shape[1]) / _STEPS / 2,
        fixed=_BIAS_ROUNDING * bias,
    )


def statistical_bound(table: NDArray[np.float32], stored: NDArray[np.float32]) -> ErrorBound:
    """Returns four standard deviations of the logits' error, if rounding errors are independent.

    The kernel of MatMulNBits rounds rows in blocks to symmetric 8 bits: steps of 2 spread / 254 or
    less, and errors of a step / sqrt(12).
    """
    error, norm = _largest_norm(table - stored), _largest_norm(stored)
    return ErrorBound(
        by_norm=_DEVIATIONS * error / math.sqrt(table.shape[1]),
        by_spread=_DEVIATIONS * norm * 2 / (_STEPS - 1) / _UNIFORM,
    )


def _largest_norm(rows: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(rows, axis=1).max())

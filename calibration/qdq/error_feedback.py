"""Rounding with error feedback: later weights make up for the rounding errors of earlier ones.

A product y = x W is to keep its value, not W its own. With the second moments H = E[x x^T] of the
inputs, the squared error of y is the trace of (Q - W)^T H (Q - W). The rows of W, one for each
number of x, are rounded one after the other; what a rounding changes in y is taken back, as far as
H lets them, by the rows that are not rounded yet (GPTQ, https://arxiv.org/abs/2210.17323). Plain
rounding is the case of an H without correlations.

    for each block of rows              the rows that share a scale
        choose the block's scales       by search, for the rows as they are now
        for each row k of the block
            round row k
            rows after k  -=  error of row k, weighted by the factor of H^-1
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.calibration.qdq.low_bit_types import LowBitType
from hybrid_deploy.calibration.qdq.weight_rounding import QuantizedWeight, best_block_scale

FloatArray = NDArray[np.float32]

_DAMPING = 0.01
"""Share of the mean moment that is added to every moment, so that H has an inverse."""


def round_with_error_feedback(
    weight: FloatArray, moments: NDArray[np.float64], block_size: int, low_bit_type: LowBitType
) -> QuantizedWeight:
    """Returns a matrix rounded in blocks so that the error of its products is small.

    Args:
        weight: (summed axis, channels) float32, finite; it is not changed.
        moments: (summed axis, summed axis) float64, the second moments of the inputs.
        block_size: number of weights along the summed axis that share a scale; it divides the axis.
        low_bit_type: the number type of the values.
    """
    factor = _feedback_factor(moments)
    importance = np.maximum(np.diagonal(moments), np.finfo(np.float32).tiny)
    remaining = weight.astype(np.float32, copy=True)
    values = np.empty(weight.shape, low_bit_type.numpy_dtype)
    scales = np.empty((len(weight) // block_size, weight.shape[1]), np.float32)
    for number in range(len(scales)):
        rows = slice(number * block_size, (number + 1) * block_size)
        scale = best_block_scale(remaining[rows], importance[rows], low_bit_type)
        errors = np.empty((block_size, weight.shape[1]), np.float32)
        for row in range(rows.start, rows.stop):
            values[row] = low_bit_type.quantized(remaining[row] / scale)
            error = remaining[row] - values[row].astype(np.float32) * scale
            errors[row - rows.start] = error / factor[row, row]
            following = slice(row + 1, rows.stop)
            remaining[following] -= np.outer(factor[row, following], errors[row - rows.start])
        remaining[rows.stop :] -= factor[rows, rows.stop :].T @ errors
        scales[number] = scale
    return QuantizedWeight(values, scales, 0, block_size)


def _feedback_factor(moments: NDArray[np.float64]) -> FloatArray:
    """Returns the upper triangular U with U^T U = H^-1, as float32.

    Row k of U, divided by its diagonal, tells how the rows after k make up for an error of row k.
    """
    damped = moments.copy()
    diagonal = np.einsum("ii->i", damped)
    diagonal += _DAMPING * max(float(diagonal.mean()), np.finfo(np.float32).tiny)
    inverse = np.linalg.inv(damped)
    factor: FloatArray = np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)
    return factor

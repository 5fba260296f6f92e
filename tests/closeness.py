"""Assertions that two float32 results are equal up to rounding.

Kernels differ between processors in the order of their sums and in whether they round between a
product and a sum. Each rounding changes a result by up to half of float32's epsilon times the
largest number of the computation, even if the result itself is small: where large terms cancel, a
small result has the same absolute error as a large one. A tolerance is therefore a share of the
largest number in the compared arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Numbers = ArrayLike | Tensor

EPSILON = float(np.finfo(np.float32).eps)
"""1.2e-7: the distance between neighbouring float32 numbers from 1 to 2."""

ROUNDINGS = 100
"""Allowed difference between two computations of a small graph, in epsilons of the largest number.

100 epsilons are 1.2e-5 of the largest number. Sums of some hundred products in two orders differ by
10 epsilons, a few layers of such sums by 20. A wrong weight, row or position changes a result by
more than a thousandth of the largest number.
"""


def largest(values: Numbers) -> float:
    """Returns the largest finite magnitude; 0 if there is none."""
    magnitudes = np.abs(_float64(values))
    return float(magnitudes[np.isfinite(magnitudes)].max(initial=0))


def float32_error(size: float, roundings: int = ROUNDINGS) -> float:
    """Returns the largest allowed difference between two float32 computations of one number.

    Args:
        size: largest magnitude of any number in the computations. For log-probabilities and their
            means this is the largest logit, because they are differences of logits.
        roundings: allowed difference in epsilons of `size`, for both computations together.
    """
    return roundings * EPSILON * size


def assert_close_in_float32(
    actual: Numbers,
    expected: Numbers,
    *,
    roundings: int = ROUNDINGS,
    size: float | None = None,
) -> None:
    """Asserts that two float32 computations have the same result, up to rounding.

    Args:
        actual: result under test, of any shape.
        expected: correct result, of the same shape as `actual`. Infinities must have the same
            positions and signs in both arrays; NaN is never close.
        roundings: allowed difference in epsilons, as in `float32_error`.
        size: largest magnitude of any number in the computations; None takes that of `expected`.

    Raises:
        AssertionError: the arrays differ by more, or have other shapes.
    """
    assert_close(actual, expected, share=roundings * EPSILON, size=size)


def assert_close(
    actual: Numbers, expected: Numbers, *, share: float, size: float | None = None
) -> None:
    """Asserts that arrays differ by at most a share of their largest number.

    Args:
        actual: result under test, of any shape.
        expected: correct result, of the same shape as `actual`. Infinities must have the same
            positions and signs in both arrays; NaN is never close.
        share: allowed difference as a share of `size`. The caller states the reason where the share
            is larger than float32 rounding.
        size: magnitude that the share refers to; None takes the largest finite one of `expected`.

    Raises:
        AssertionError: the arrays differ by more, or have other shapes.
    """
    result, reference = _float64(actual), _float64(expected)
    assert result.shape == reference.shape, f"shape {result.shape}, not {reference.shape}"
    assert not np.isnan(result).any() and not np.isnan(reference).any(), "there is a NaN"
    size = largest(reference) if size is None else size
    # assert_allclose itself compares infinities by position and sign
    np.testing.assert_allclose(result, reference, rtol=0, atol=share * size)


def assert_scores_close_in_float32(
    actual: Sequence[float] | None, expected: Sequence[float] | None, largest_logit: float
) -> None:
    """Asserts that two runs have the same scores, one log-probability per token.

    Args:
        actual: scores of one sequence in the run under test.
        expected: scores of the same tokens in the other run.
        largest_logit: largest magnitude of the logits behind the scores. A score is a difference of
            logits and has their absolute error, even where it is nearly 0.

    Raises:
        AssertionError: the scores differ by more than float32 rounding, or a run has none.
    """
    assert actual is not None and expected is not None, "there are no scores"
    assert_close_in_float32(actual, expected, size=largest_logit)


def _float64(values: Numbers) -> NDArray[np.float64]:
    array = values.detach().numpy() if isinstance(values, torch.Tensor) else values
    return np.asarray(array, np.float64)

"""How close float32 results must be that other kernels computed: by the size of the numbers.

A processor decides in which order a kernel sums, and whether it rounds between a product and a
sum. Each rounding moves a result by up to half of float32's epsilon of the largest number that it
meets, whatever the size of the number that comes out: where large terms cancel, a small result is
as far off as a large one. So a tolerance is a share of the largest number of what is compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Numbers = ArrayLike | Tensor

EPSILON = float(np.finfo(np.float32).eps)
"""1.2e-7: how far apart float32 numbers between 1 and 2 are."""

ROUNDINGS = 100
"""Of two computations of a small graph, 1.2e-5 of the largest number.

Sums of some hundred products in two orders differ by 10 epsilons, a few layers of them by 20. What
a wrong weight, row or position does is more than a thousandth.
"""


def largest(values: Numbers) -> float:
    """Returns the largest finite magnitude; 0 if there is none."""
    magnitudes = np.abs(_float64(values))
    return float(magnitudes[np.isfinite(magnitudes)].max(initial=0))


def float32_error(size: float, roundings: int = ROUNDINGS) -> float:
    """Returns how far apart two float32 computations of one number may be.

    Args:
        size: the largest number that the computations meet. For logarithms of probabilities, and
            for means of them, that is the largest logit: they are differences of logits.
        roundings: how many epsilons of that size both may be off together.
    """
    return roundings * EPSILON * size


def assert_close_in_float32(
    actual: Numbers,
    expected: Numbers,
    *,
    roundings: int = ROUNDINGS,
    size: float | None = None,
) -> None:
    """Asserts that two float32 computations gave the same, up to their roundings.

    Args:
        actual: any shape.
        expected: of the same shape. Infinities must be where `actual` has them; NaN is never close.
        roundings: as `float32_error` takes it.
        size: the largest number that the computations meet, where that is not among `expected`.
    """
    assert_close(actual, expected, share=roundings * EPSILON, size=size)


def assert_close(
    actual: Numbers, expected: Numbers, *, share: float, size: float | None = None
) -> None:
    """Asserts that arrays differ by at most a share of the largest number.

    Args:
        actual: any shape.
        expected: of the same shape. Infinities must be where `actual` has them; NaN is never close.
        share: of the size. Say why, where it is more than float32's roundings.
        size: that of the numbers; without it the largest finite magnitude of `expected`.
    """
    given, wanted = _float64(actual), _float64(expected)
    assert given.shape == wanted.shape, f"shape {given.shape}, not {wanted.shape}"
    assert not np.isnan(given).any() and not np.isnan(wanted).any(), "there is a NaN"
    size = largest(wanted) if size is None else size
    # it compares infinities by their places and signs
    np.testing.assert_allclose(given, wanted, rtol=0, atol=share * size)


def assert_scores_close_in_float32(
    actual: Sequence[float] | None, expected: Sequence[float] | None, largest_logit: float
) -> None:
    """Asserts that two runs gave the same logarithms of probabilities, one a token.

    Args:
        actual: of one sequence.
        expected: of the same tokens.
        largest_logit: that the probabilities were made of: a score is a difference of logits, and
            as far off as they are, even where it is nearly 0.
    """
    assert actual is not None and expected is not None, "there are no scores"
    assert_close_in_float32(actual, expected, size=largest_logit)


def _float64(values: Numbers) -> NDArray[np.float64]:
    array = values.detach().numpy() if isinstance(values, torch.Tensor) else values
    return np.asarray(array, np.float64)

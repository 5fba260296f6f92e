"""Tests of the float32 comparison: it accepts rounding and refuses real differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.closeness import (
    assert_close,
    assert_close_in_float32,
    assert_scores_close_in_float32,
    float32_error,
    largest,
)

LOGITS = np.array([[120.0, -3.0, 1e-4], [7.0, -119.0, 0.0]], np.float32)


def refusal(actual: object, expected: object = LOGITS) -> str:
    with pytest.raises(AssertionError) as caught:
        assert_close_in_float32(actual, expected)  # type: ignore[arg-type]
    return str(caught.value)


def test_rounding_is_accepted_wherever_it_happens() -> None:
    """A small number may have the absolute error of the large numbers beside it."""
    assert_close_in_float32(LOGITS * (1 + 2e-6), LOGITS)
    assert_close_in_float32(LOGITS + 120 * 2e-6, LOGITS)
    assert_close_in_float32(torch.from_numpy(LOGITS).requires_grad_(), LOGITS)
    assert_close_in_float32(np.zeros(3), np.zeros(3))


@pytest.mark.parametrize("index", [(0, 0), (0, 2), (1, 2)])
def test_a_thousandth_is_refused_in_any_number(index: tuple[int, int]) -> None:
    wrong = LOGITS.copy()
    wrong[index] += 120 * 1e-3
    assert "Mismatched elements: 1 / 6" in refusal(wrong)


def test_small_numbers_are_compared_as_closely_as_large_ones() -> None:
    assert refusal(1e-6 * LOGITS * (1 + 1e-3), 1e-6 * LOGITS)
    assert refusal(np.full(3, 1e-20), np.zeros(3))


def test_a_different_shape_is_refused_even_if_it_broadcasts() -> None:
    assert refusal(LOGITS[:1]).startswith("shape (1, 3), not (2, 3)")
    assert refusal(1.0, np.ones(3)).startswith("shape (), not (3,)")


def test_nan_is_never_close() -> None:
    with_nan = np.where(LOGITS == 7, np.nan, LOGITS)
    for actual, expected in ((with_nan, LOGITS), (LOGITS, with_nan), (with_nan, with_nan)):
        assert refusal(actual, expected).startswith("there is a NaN")


def test_infinities_must_have_the_same_positions_and_signs() -> None:
    with_infinity = np.where(LOGITS == 7, -np.inf, LOGITS)
    assert largest(with_infinity) == 120
    assert_close_in_float32(with_infinity * np.float32(1 + 2e-6), with_infinity)
    assert (
        refusal(with_infinity)
        and refusal(LOGITS, with_infinity)
        and refusal(-with_infinity, with_infinity)
    )


def test_a_size_and_a_share_can_be_given() -> None:
    assert_close([0.0], [1e-3], share=1e-4, size=10.0 + 1e-6)
    with pytest.raises(AssertionError):
        assert_close([0.0], [1e-3], share=1e-4, size=9.0)


def test_scores_may_have_the_absolute_error_of_logits() -> None:
    assert_scores_close_in_float32((-1e-7, -3.0), (-1e-4, -3.0), largest_logit=120.0)
    with pytest.raises(AssertionError):
        assert_scores_close_in_float32((-1e-7, -3.0), (-1e-4, -3.0), largest_logit=1.0)
    with pytest.raises(AssertionError, match="no scores"):
        assert_scores_close_in_float32(None, None, largest_logit=1.0)


def test_error_grows_with_the_size_and_the_roundings() -> None:
    assert float32_error(120.0) == pytest.approx(120 * 1.19e-5, rel=0.01)
    assert float32_error(1.0, roundings=1) == 2.0**-23

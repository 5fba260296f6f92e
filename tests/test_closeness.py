"""What counts as the same float32 result, and what no longer does."""

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


def refused(actual: object, expected: object = LOGITS) -> str:
    with pytest.raises(AssertionError) as caught:
        assert_close_in_float32(actual, expected)  # type: ignore[arg-type]
    return str(caught.value)


def test_rounding_is_accepted_wherever_it_happens() -> None:
    """A small number beside large ones is as far off as they are."""
    assert_close_in_float32(LOGITS * (1 + 2e-6), LOGITS)
    assert_close_in_float32(LOGITS + 120 * 2e-6, LOGITS)
    assert_close_in_float32(torch.from_numpy(LOGITS).requires_grad_(), LOGITS)
    assert_close_in_float32(np.zeros(3), np.zeros(3))


@pytest.mark.parametrize("place", [(0, 0), (0, 2), (1, 2)])
def test_a_thousandth_is_refused_in_any_number(place: tuple[int, int]) -> None:
    wrong = LOGITS.copy()
    wrong[place] += 120 * 1e-3
    assert "Mismatched elements: 1 / 6" in refused(wrong)


def test_small_numbers_are_compared_as_closely_as_large_ones() -> None:
    assert refused(1e-6 * LOGITS * (1 + 1e-3), 1e-6 * LOGITS)
    assert refused(np.full(3, 1e-20), np.zeros(3))


def test_other_shapes_are_refused_even_if_they_broadcast() -> None:
    assert refused(LOGITS[:1]).startswith("shape (1, 3), not (2, 3)")
    assert refused(1.0, np.ones(3)).startswith("shape (), not (3,)")


def test_nan_is_never_close() -> None:
    nowhere = np.where(LOGITS == 7, np.nan, LOGITS)
    for actual, expected in ((nowhere, LOGITS), (LOGITS, nowhere), (nowhere, nowhere)):
        assert refused(actual, expected).startswith("there is a NaN")


def test_infinities_have_their_places() -> None:
    hidden = np.where(LOGITS == 7, -np.inf, LOGITS)
    assert largest(hidden) == 120
    assert_close_in_float32(hidden * np.float32(1 + 2e-6), hidden)
    assert refused(hidden) and refused(LOGITS, hidden) and refused(-hidden, hidden)


def test_a_size_and_a_share_can_be_given() -> None:
    assert_close([0.0], [1e-3], share=1e-4, size=10.0 + 1e-6)
    with pytest.raises(AssertionError):
        assert_close([0.0], [1e-3], share=1e-4, size=9.0)


def test_scores_are_as_far_off_as_logits() -> None:
    assert_scores_close_in_float32((-1e-7, -3.0), (-1e-4, -3.0), largest_logit=120.0)
    with pytest.raises(AssertionError):
        assert_scores_close_in_float32((-1e-7, -3.0), (-1e-4, -3.0), largest_logit=1.0)
    with pytest.raises(AssertionError, match="no scores"):
        assert_scores_close_in_float32(None, None, largest_logit=1.0)


def test_error_grows_with_the_size_and_the_roundings() -> None:
    assert float32_error(120.0) == pytest.approx(120 * 1.19e-5, rel=0.01)
    assert float32_error(1.0, roundings=1) == 2.0**-23

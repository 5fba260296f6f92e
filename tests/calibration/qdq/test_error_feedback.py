"""Rounding with error feedback: what it keeps is the product, not the weight."""

import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.calibration.qdq.error_feedback import round_with_error_feedback
from hybrid_deploy.calibration.qdq.low_bit_types import INT4, INT8, LowBitType
from hybrid_deploy.calibration.qdq.weight_rounding import best_block_scale, quantize_in_blocks

ROWS, CHANNELS, BLOCK = 96, 40, 32


@pytest.fixture
def weight() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(ROWS, CHANNELS)).astype(np.float32)


def correlated_inputs(count: int = 4000) -> NDArray[np.float64]:
    """Returns inputs (count, ROWS) that mostly lie in a few directions, as activations do."""
    rng = np.random.default_rng(2)
    directions = rng.normal(size=(12, ROWS))
    return rng.normal(size=(count, 12)) @ directions + 0.3 * rng.normal(size=(count, ROWS))


def product_error(
    inputs: NDArray[np.float64], weight: NDArray[np.float32], restored: NDArray[np.float32]
) -> float:
    return float(np.square(inputs @ (restored - weight)).mean())


def test_products_of_correlated_inputs_are_closer(weight: NDArray[np.float32]) -> None:
    inputs = correlated_inputs()
    moments = inputs.T @ inputs / len(inputs)
    nearest = quantize_in_blocks("w", weight, BLOCK, 0, INT4).restored
    fed_back = round_with_error_feedback(weight, moments, BLOCK, INT4).restored
    unseen = (
        np.random.default_rng(3).normal(size=(500, ROWS))
        @ np.linalg.cholesky(moments + 1e-6 * np.eye(ROWS)).T
    )
    for seen in (inputs, unseen):
        error = product_error(seen, weight, fed_back)
        assert error < 0.35 * product_error(seen, weight, nearest)


@pytest.mark.parametrize("low_bit_type", [INT4, INT8])
def test_without_correlations_every_row_is_rounded_by_itself(
    weight: NDArray[np.float32], low_bit_type: LowBitType
) -> None:
    rounded = round_with_error_feedback(weight, np.eye(ROWS), BLOCK, low_bit_type)
    for number in range(ROWS // BLOCK):
        rows = slice(number * BLOCK, (number + 1) * BLOCK)
        scale = best_block_scale(weight[rows], np.ones(BLOCK), low_bit_type)
        np.testing.assert_array_equal(rounded.scale[number], scale)
        expected = low_bit_type.quantized(weight[rows] / scale)
        np.testing.assert_array_equal(rounded.values[rows], expected)
    assert (rounded.axis, rounded.block_size) == (0, BLOCK)


def test_inputs_that_are_always_zero_do_no_harm(weight: NDArray[np.float32]) -> None:
    inputs = correlated_inputs()
    inputs[:, ::3] = 0
    rounded = round_with_error_feedback(weight, inputs.T @ inputs / len(inputs), BLOCK, INT4)
    assert np.isfinite(rounded.restored).all()
    assert product_error(inputs, weight, rounded.restored) < 1


@pytest.mark.parametrize("inputs", [np.zeros((3, ROWS)), np.ones((1, ROWS))])
def test_too_few_inputs_for_an_inverse_still_round(
    weight: NDArray[np.float32], inputs: NDArray[np.float64]
) -> None:
    rounded = round_with_error_feedback(weight, inputs.T @ inputs, BLOCK, INT4)
    assert np.isfinite(rounded.restored).all()


def test_the_weight_is_not_changed(weight: NDArray[np.float32]) -> None:
    before = weight.copy()
    round_with_error_feedback(weight, np.eye(ROWS), BLOCK, INT4)
    np.testing.assert_array_equal(weight, before)


def test_the_scale_of_a_block_follows_what_is_important() -> None:
    """An outlier that never matters is clipped, and one that does is kept."""
    block = np.random.default_rng(4).normal(size=(BLOCK, 1)).astype(np.float32)
    block[5] = 8
    importance = np.ones(BLOCK)
    importance[5] = 1e-6
    clipped = best_block_scale(block, importance, INT4)
    importance[5] = 1e6
    kept = best_block_scale(block, importance, INT4)
    assert clipped < 0.6 * kept
    np.testing.assert_allclose(INT4.quantized(block[5] / kept).astype(float) * kept, 8, rtol=0.01)

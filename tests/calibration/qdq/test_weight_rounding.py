import numpy as np
import pytest

from hybrid_deploy.calibration.qdq.weight_rounding import quantize_in_blocks, quantize_per_channel
from hybrid_deploy.errors import CalibrationError


@pytest.fixture
def matrix() -> np.ndarray:
    matrix = np.random.default_rng(2).normal(size=(64, 6)).astype(np.float32)
    matrix[:, 4] = 0
    return matrix


def test_per_channel_error_is_half_a_step(matrix: np.ndarray) -> None:
    quantized = quantize_per_channel("w", matrix, axis=1)
    assert quantized.values.dtype == np.int8
    assert quantized.scale.shape == (6,)
    restored = quantized.values * quantized.scale
    # rounding moves a number by half a step, and float32 by a little more
    assert np.all(np.abs(restored - matrix) <= quantized.scale * 0.5001)
    assert np.abs(quantized.values).max() == 127


def test_blocks_have_their_own_scales(matrix: np.ndarray) -> None:
    quantized = quantize_in_blocks("w", matrix, block_size=16)
    assert quantized.scale.shape == (4, 6)
    restored = quantized.values * np.repeat(quantized.scale, 16, axis=0)
    assert np.all(np.abs(restored - matrix) <= np.repeat(quantized.scale, 16, axis=0) * 0.5001)


def test_block_must_divide(matrix: np.ndarray) -> None:
    with pytest.raises(CalibrationError, match="w has 64 weights along axis 0, no multiple of"):
        quantize_in_blocks("w", matrix, block_size=48)


def test_weights_must_be_finite(matrix: np.ndarray) -> None:
    matrix[3, 2] = np.nan
    with pytest.raises(CalibrationError, match="weight w is not finite"):
        quantize_per_channel("w", matrix, axis=1)

"""Symmetric int8 weights: one scale per channel, or one per block along the summed axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.errors import CalibrationError

INT8_MAX = 127


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as DequantizeLinear takes it.

    Attributes:
        values: int8, of the weight's shape, within -127..127.
        scale: float32; (channels,), or the weight's shape with `axis` counted in blocks.
        axis: of the channels, or of the blocks.
        block_size: weights along `axis` that share a scale; None for one scale per channel.
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float32]
    axis: int
    block_size: int | None = None


def quantize_per_channel(name: str, weight: NDArray[np.float32], axis: int) -> QuantizedWeight:
    """Quantizes a weight with one scale for each index along `axis`.

    Raises:
        CalibrationError: the weight, called `name`, is not finite.
    """
    _check_finite(name, weight)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = _scale(np.abs(weight).max(axis=others, keepdims=True))
    return QuantizedWeight(_rounded(weight / scale), scale.reshape(-1), axis)


def quantize_in_blocks(
    name: str, weight: NDArray[np.float32], block_size: int, axis: int = 0
) -> QuantizedWeight:
    """Quantizes a matrix with one scale for every `block_size` weights along `axis`.

    Raises:
        CalibrationError: the weight is not finite, or its axis is no multiple of the block.
    """
    _check_finite(name, weight)
    size = weight.shape[axis]
    if size % block_size:
        raise CalibrationError(
            f"{name} has {size} weights along axis {axis}, no multiple of the block {block_size}; "
            "use one scale per channel"
        )
    blocks = weight.reshape(
        *weight.shape[:axis], size // block_size, block_size, *weight.shape[axis + 1 :]
    )
    scale = _scale(np.abs(blocks).max(axis=axis + 1, keepdims=True))
    values = _rounded(blocks / scale).reshape(weight.shape)
    return QuantizedWeight(values, scale.squeeze(axis + 1), axis, block_size)


def _check_finite(name: str, weight: NDArray[np.float32]) -> None:
    if not np.isfinite(weight).all():
        raise CalibrationError(f"weight {name} is not finite; export a model with sound weights")


def _scale(amax: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gives amax / 127; a channel of zeros, or of numbers too small to divide by, gets 1."""
    scale: NDArray[np.float32] = (amax / np.float32(INT8_MAX)).astype(np.float32)
    tiny = np.finfo(np.float32).tiny
    scale[scale < tiny] = 1
    return scale


def _rounded(ratio: NDArray[np.float32]) -> NDArray[np.int8]:
    return np.clip(np.rint(ratio), -INT8_MAX, INT8_MAX).astype(np.int8)

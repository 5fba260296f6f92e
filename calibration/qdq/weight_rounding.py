"""Symmetric rounding of weights: one scale per channel, or one per block along the summed axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.calibration.qdq.low_bit_types import INT8, LowBitType
from hybrid_deploy.errors import CalibrationError

_CLIPS = np.linspace(1.0, 0.5, 21)
"""The tried scales, as shares of the scale that represents the largest magnitude of a block."""


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight in the form of DequantizeLinear's inputs and attributes.

    Attributes:
        values: the rounded weight divided by its scales, in the weight's shape and a low-bit dtype.
        scale: the scales, float32; (channels,), or the weight's shape with one entry for each block
            along `axis`.
        axis: the axis that counts the channels, or along which the blocks lie.
        block_size: number of weights along `axis` that share a scale; None for one scale per
            channel.
    """

    values: NDArray[Any]
    scale: NDArray[np.float32]
    axis: int
    block_size: int | None = None

    @property
    def restored(self) -> NDArray[np.float32]:
        """The weight that DequantizeLinear returns, float32."""
        values = self.values.astype(np.float32)
        if self.block_size is not None:
            return values * np.repeat(self.scale, self.block_size, axis=self.axis)
        shape = [1] * values.ndim
        shape[self.axis] = -1
        return values * self.scale.reshape(shape)

    @property
    def transposed(self) -> QuantizedWeight:
        """The same matrix with its axes exchanged."""
        scale = self.scale if self.block_size is None else self.scale.T
        return QuantizedWeight(self.values.T, scale, 1 - self.axis, self.block_size)


def quantize_per_channel(
    name: str, weight: NDArray[np.float32], axis: int, low_bit_type: LowBitType = INT8
) -> QuantizedWeight:
    """Returns a weight quantized with one scale for each index along `axis`.

    Args:
        name: name of the weight, for messages.
        weight: the weight, any shape, float32; it is not changed.
        axis: the axis that counts the output channels.
        low_bit_type: the number type of the values.

    Raises:
        CalibrationError: the weight is not finite.
    """
    check_finite(name, weight)
    summed_axes = tuple(i for i in range(weight.ndim) if i != axis)
    scale = _nonzero_scale(np.abs(weight).max(axis=summed_axes, keepdims=True), low_bit_type)
    return QuantizedWeight(low_bit_type.quantized(weight / scale), scale.reshape(-1), axis)


def quantize_in_blocks(
    name: str,
    weight: NDArray[np.float32],
    block_size: int,
    axis: int = 0,
    low_bit_type: LowBitType = INT8,
) -> QuantizedWeight:
    """Returns a weight quantized with one scale for every `block_size` weights along `axis`.

    Args:
        name: name of the weight, for messages.
        weight: the weight, any shape, float32; it is not changed.
        block_size: number of neighbouring weights that share a scale.
        axis: the summed axis.
        low_bit_type: the number type of the values.

    Raises:
        CalibrationError: the weight is not finite, or the size of its axis is no multiple of
            `block_size`.
    """
    check_finite(name, weight)
    size = weight.shape[axis]
    if size % block_size:
        raise CalibrationError(
            f"{name} has {size} weights along axis {axis}, no multiple of the block {block_size}; "
            "use one scale per channel"
        )
    blocks = weight.reshape(
        *weight.shape[:axis], size // block_size, block_size, *weight.shape[axis + 1 :]
    )
    scale = _nonzero_scale(np.abs(blocks).max(axis=axis + 1, keepdims=True), low_bit_type)
    values = low_bit_type.quantized(blocks / scale).reshape(weight.shape)
    return QuantizedWeight(values, scale.squeeze(axis + 1), axis, block_size)


def best_block_scale(
    block: NDArray[np.float32], importance: NDArray[np.float64], low_bit_type: LowBitType
) -> NDArray[np.float32]:
    """Returns the scale of each channel of a block that leaves the smallest rounding error.

    A scale below that of the largest magnitude clips this weight and rounds all others finer. The
    search tries `_CLIPS` of it.

    Args:
        block: the weights that share a scale, (rows, channels) float32.
        importance: (rows,), the weight of each row's squared error.
        low_bit_type: the number type of the values.

    Returns:
        (channels,) float32, positive.
    """
    whole = _nonzero_scale(np.abs(block).max(axis=0), low_bit_type)
    best, lowest = whole, np.full(len(whole), np.inf)
    weights = (importance / importance.max()).astype(np.float32)
    for clip in _CLIPS:
        scale = whole * np.float32(clip)
        restored = np.rint(block / scale).clip(-low_bit_type.largest, low_bit_type.largest) * scale
        error = weights @ np.square(restored - block)
        best = np.where(error < lowest, scale, best)
        lowest = np.minimum(error, lowest)
    return best


def check_finite(name: str, weight: NDArray[np.float32]) -> None:
    """Checks the numbers of a weight.

    Raises:
        CalibrationError: one of them is NaN or infinite.
    """
    if not np.isfinite(weight).all():
        raise CalibrationError(f"weight {name} is not finite; export a model with finite weights")


def _nonzero_scale(amax: NDArray[np.float32], low_bit_type: LowBitType) -> NDArray[np.float32]:
    """Returns amax / largest; the scale is 1 where that is zero or denormal."""
    scale: NDArray[np.float32] = (amax / np.float32(low_bit_type.largest)).astype(np.float32)
    tiny = np.finfo(np.float32).tiny
    scale[scale < tiny] = 1
    return scale

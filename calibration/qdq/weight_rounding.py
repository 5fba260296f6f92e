"""Symmetric weights of few bits: one scale per channel, or one per block along the summed axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.calibration.qdq.low_bit_types import INT8, LowBitType
from hybrid_deploy.errors import CalibrationError


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as DequantizeLinear takes it.

    Attributes:
        values: of the weight's shape, in the type of `form`.
        scale: float32; (channels,), or the weight's shape with `axis` counted in blocks.
        axis: of the channels, or of the blocks.
        form: what the values are.
        block_size: weights along `axis` that share a scale; None for one scale per channel.
    """

    values: NDArray[Any]
    scale: NDArray[np.float32]
    axis: int
    low_bit_type: LowBitType
    block_size: int | None = None

    @property
    def restored(self) -> NDArray[np.float32]:
        """What DequantizeLinear makes of it."""
        values = self.values.astype(np.float32)
        if self.block_size is not None:
            return values * np.repeat(self.scale, self.block_size, axis=self.axis)
        shape = [1] * values.ndim
        shape[self.axis] = -1
        return values * self.scale.reshape(shape)


def quantize_per_channel(
    name: str, weight: NDArray[np.float32], axis: int, low_bit_type: LowBitType = INT8
) -> QuantizedWeight:
    """Quantizes a weight with one scale for each index along `axis`.

    Raises:
        CalibrationError: the weight, called `name`, is not finite.
    """
    _check_finite(name, weight)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = _scale(np.abs(weight).max(axis=others, keepdims=True), low_bit_type)
    return QuantizedWeight(
        low_bit_type.quantized(weight / scale), scale.reshape(-1), axis, low_bit_type
    )


def quantize_in_blocks(
    name: str,
    weight: NDArray[np.float32],
    block_size: int,
    axis: int = 0,
    low_bit_type: LowBitType = INT8,
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
    scale = _scale(np.abs(blocks).max(axis=axis + 1, keepdims=True), low_bit_type)
    values = low_bit_type.quantized(blocks / scale).reshape(weight.shape)
    return QuantizedWeight(values, scale.squeeze(axis + 1), axis, low_bit_type, block_size)


def _check_finite(name: str, weight: NDArray[np.float32]) -> None:
    if not np.isfinite(weight).all():
        raise CalibrationError(f"weight {name} is not finite; export a model with sound weights")


def _scale(amax: NDArray[np.float32], form: LowBitType) -> NDArray[np.float32]:
    """Returns amax / largest; a channel of zeros, or of numbers too small to divide by, gets 1."""
    scale: NDArray[np.float32] = (amax / np.float32(form.largest)).astype(np.float32)
    tiny = np.finfo(np.float32).tiny
    scale[scale < tiny] = 1
    return scale

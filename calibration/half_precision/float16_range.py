"""The 16-bit float types: which tensors overflow them, and constants rounded to them.

A constant beyond the range of the type is clamped where it is a mask or a bound, and refused where
it is a weight. What uses the constant decides which of these it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.errors import CalibrationError

_OUTPUT = "output"
_BOUNDING = frozenset({"Clip", "Max", "Min"})
_MASKING = frozenset({"Add", "Attention", "Sub", "Where"})
_MOVING = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile"}
    | {"Transpose", "Unsqueeze"}
)
_OVERFLOW_SHARE = 0.75  # of the largest number: other inputs may exceed the samples' magnitudes


@dataclass(frozen=True)
class HalfType:
    """A 16-bit float type.

    Attributes:
        name: name of the type in messages.
        dtype: the ONNX type.
        numpy_dtype: the numpy dtype; ml_dtypes' for bfloat16.
        largest: the largest finite number.
        smallest_positive: the smallest positive number, a subnormal one.
    """

    name: str
    dtype: ir.DataType
    numpy_dtype: Any
    largest: float
    smallest_positive: float

    @property
    def mask_magnitude(self) -> float:
        """Magnitude of a clamped mask: a score or a second mask added to it stays finite."""
        return self.largest / 2


def _half_type(name: str, dtype: ir.DataType, numpy_dtype: Any) -> HalfType:
    info: Any = ml_dtypes.finfo(numpy_dtype)  # type: ignore[no-untyped-call]
    return HalfType(name, dtype, numpy_dtype, float(info.max), float(info.smallest_subnormal))


FLOAT16 = _half_type("float16", ir.DataType.FLOAT16, np.float16)
BFLOAT16 = _half_type("bfloat16", ir.DataType.BFLOAT16, ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Consumer:
    """An operator that computes with a constant, behind the operators that only move it.

    Attributes:
        operator: type of the operator; `output` where the graph returns the constant.
        index: index of the operator's input that receives the constant.
        scaled: whether a Mul before the operator multiplies the constant.
    """

    operator: str
    index: int
    scaled: bool = False


def consumers_of(value: ir.Value) -> frozenset[Consumer]:
    """Returns the operators that compute with a value.

    Behind an operator that only moves numbers, the search goes on; if the value is a single number,
    also behind one Mul.
    """
    is_scalar = value.const_value is not None and value.const_value.size == 1
    return frozenset(_final_consumers(value, is_scalar, scaled=False))


def _final_consumers(value: ir.Value, is_scalar: bool, *, scaled: bool) -> Iterator[Consumer]:
    if value.is_graph_output():
        yield Consumer(_OUTPUT, 0, scaled)
    for node, index in value.uses():
        is_moved = node.op_type in _MOVING and (index == 0 or node.op_type == "Concat")
        is_multiplied = node.op_type == "Mul" and is_scalar and not scaled
        if is_moved or is_multiplied:
            yield from _final_consumers(node.outputs[0], is_scalar, scaled=scaled or is_multiplied)
        elif node.op_type == "Where":
            selected_consumers = list(_final_consumers(node.outputs[0], is_scalar, scaled=scaled))
            is_subtracted_mask = bool(selected_consumers) and all(
                _is_subtracted(consumer) for consumer in selected_consumers
            )
            yield from (
                selected_consumers
                if is_subtracted_mask
                else [Consumer(node.op_type, index, scaled)]
            )
        elif node.op_type != "Shape":
            yield Consumer(node.op_type, index, scaled)


def round_to_half(
    name: str, array: NDArray[Any], consumers: Collection[Consumer], half: HalfType
) -> NDArray[Any]:
    """Returns a float32 constant in a 16-bit type, with masks and bounds clamped into its range.

    Args:
        name: name of the constant, for messages.
        array: the constant, any shape, float32.
        consumers: the operators that compute with it. Numbers beyond the range are a mask if they
            are added or selected (negative ones), subtracted (positive ones), or a factor of such a
            mask; they are bounds if Clip, Max or Min receives them. All others are weights.
        half: the 16-bit type of the result.

    Returns:
        The constant, same shape. A single number that would round to zero becomes the smallest
        positive one instead.

    Raises:
        CalibrationError: a weight lies beyond the range, or a number is NaN.
    """
    if np.isnan(array).any():
        raise CalibrationError(f"{name} holds NaN; export a model with finite weights")
    overflows = np.isfinite(array) & (np.abs(array) > half.largest)
    if overflows.any():
        if consumers and all(consumer.operator in _BOUNDING for consumer in consumers):
            array = np.where(overflows, np.copysign(half.largest, array), array)
        elif consumers and all(_is_mask(consumer, array[overflows]) for consumer in consumers):
            array = np.where(overflows, np.copysign(half.mask_magnitude, array), array)
        else:
            raise CalibrationError(
                f"{name} holds {array[overflows][0]:.3g}, {half.name} ends at {half.largest:g}; "
                "quantize to int8 or keep fp32"
            )
    rounded: NDArray[Any] = array.astype(half.numpy_dtype)
    if rounded.size == 1 and not rounded.any() and array.any():
        # an epsilon must not become zero: it prevents a division by zero
        rounded = np.copysign(half.smallest_positive, array).astype(half.numpy_dtype)
    return rounded


def _is_mask(consumer: Consumer, large: NDArray[Any]) -> bool:
    """Returns whether numbers beyond the range act as a mask in an operator."""
    if consumer.operator == _OUTPUT:
        return consumer.scaled  # a mask of the memory, which the decoder adds
    if consumer.operator not in _MASKING:
        return False
    return consumer.scaled or bool(((large > 0) == _is_subtracted(consumer)).all())


def _is_subtracted(consumer: Consumer) -> bool:
    return consumer.operator == "Sub" and consumer.index == 1


def overflowing_tensors(magnitudes: Mapping[str, float], half: HalfType) -> frozenset[str]:
    """Returns the names of the tensors that overflow a 16-bit type or come near its largest number.

    Args:
        magnitudes: largest magnitude of each tensor over the samples, by name.
        half: the 16-bit type.
    """
    limit = _OVERFLOW_SHARE * half.largest
    return frozenset(name for name, largest in magnitudes.items() if largest > limit)

"""The floats of 16 bits: what does not fit them is clamped if it is a mask or bound, or refused."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.errors import CalibrationError

_OUTPUT = "output"
_BOUNDS = frozenset({"Clip", "Max", "Min"})
_MASKING = frozenset({"Add", "Attention", "Sub", "Where"})
_MOVING = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile"}
    | {"Transpose", "Unsqueeze"}
)


@dataclass(frozen=True)
class HalfType:
    """A float of 16 bits.

    Attributes:
        name: as in messages.
        dtype: in ONNX.
        numpy: in numpy.
        largest: finite number.
        smallest: positive number.
    """

    name: str
    dtype: ir.DataType
    numpy_dtype: Any
    largest: float
    smallest_positive: float

    @property
    def mask_magnitude(self) -> float:
        """What hides: scores or a second mask may be added without reaching infinity."""
        return self.largest / 2


def _short_float(name: str, dtype: ir.DataType, numpy: Any) -> HalfType:
    info: Any = ml_dtypes.finfo(numpy)  # type: ignore[no-untyped-call]
    return HalfType(name, dtype, numpy, float(info.max), float(info.smallest_subnormal))


FLOAT16 = _short_float("float16", ir.DataType.FLOAT16, np.float16)
BFLOAT16 = _short_float("bfloat16", ir.DataType.BFLOAT16, ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Consumer:
    """What takes a number in the end.

    Attributes:
        operator: its type, or `output` for a graph's border.
        index: which of its inputs.
        scaled: whether the number was multiplied with another on the way.
    """

    operator: str
    index: int
    scaled: bool = False


def consumers_of(value: ir.Value) -> frozenset[Consumer]:
    """Finds what takes a value, past operators that only move it and, for one number, products."""
    single = value.const_value is not None and value.const_value.size == 1
    return frozenset(_uses(value, single, scaled=False))


def _uses(value: ir.Value, single: bool, *, scaled: bool) -> Iterator[Consumer]:
    if value.is_graph_output():
        yield Consumer(_OUTPUT, 0, scaled)
    for node, index in value.uses():
        moved = node.op_type in _MOVING and (index == 0 or node.op_type == "Concat")
        multiplied = node.op_type == "Mul" and single and not scaled
        if moved or multiplied:
            yield from _uses(node.outputs[0], single, scaled=scaled or multiplied)
        elif node.op_type == "Where":
            behind = list(_uses(node.outputs[0], single, scaled=scaled))
            subtracted = bool(behind) and all(_is_subtracted(use) for use in behind)
            yield from behind if subtracted else [Consumer(node.op_type, index, scaled)]
        elif node.op_type != "Shape":
            yield Consumer(node.op_type, index, scaled)


def round_to_half(
    name: str, array: NDArray[Any], consumers: Collection[Consumer], half: HalfType
) -> NDArray[Any]:
    """Returns float32 numbers in 16 bits; what lies outside their range is clamped or refused.

    Args:
        name: what the numbers are called, for messages.
        array: any shape, float32.
        uses: what takes them. Large numbers that hide something, since they are added or chosen
            (negative), subtracted (positive), or a factor of what is, are masks; bounds of Clip
            are bounds: both are clamped. Anything else is a weight.
        form: of the result.

    Raises:
        CalibrationError: a weight lies outside, or there is a NaN.
    """
    if np.isnan(array).any():
        raise CalibrationError(f"{name} holds NaN; export a model with sound weights")
    over = np.isfinite(array) & (np.abs(array) > half.largest)
    if over.any():
        if consumers and all(use.operator in _BOUNDS for use in consumers):
            array = np.where(over, np.copysign(half.largest, array), array)
        elif consumers and all(_hides(use, array[over]) for use in consumers):
            array = np.where(over, np.copysign(half.mask_magnitude, array), array)
        else:
            raise CalibrationError(
                f"{name} holds {array[over][0]:.3g}, {half.name} ends at {half.largest:g}; "
                "quantize to int8 or keep fp32"
            )
    short: NDArray[Any] = array.astype(half.numpy_dtype)
    if short.size == 1 and not short.any() and array.any():
        # an epsilon must not vanish: it keeps a division from zero
        short = np.copysign(half.smallest_positive, array).astype(half.numpy_dtype)
    return short


def _hides(use: Consumer, large: NDArray[Any]) -> bool:
    """Returns whether large numbers are a mask to what takes them."""
    if use.operator == _OUTPUT:
        return use.scaled  # a mask of the memory, which the decoder adds
    if use.operator not in _MASKING:
        return False
    return use.scaled or bool(((large > 0) == _is_subtracted(use)).all())


def _is_subtracted(use: Consumer) -> bool:
    return use.operator == "Sub" and use.index == 1

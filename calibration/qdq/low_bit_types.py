"""The number types of 8 and 4 bits that weights are stored in, symmetric about zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True)
class LowBitType:
    """A number type of 8 or 4 bits.

    Attributes:
        name: name of the type in the names of tensors.
        dtype: the ONNX type.
        numpy_dtype: the numpy dtype; ml_dtypes' for int4 and float8.
        largest: the largest magnitude in use; the lowest integer is left out, for symmetry.
        is_integer: whether the numbers are integers.
    """

    name: str
    dtype: ir.DataType
    numpy_dtype: Any
    largest: float
    is_integer: bool = True

    def quantized(self, ratio: NDArray[np.float32]) -> NDArray[Any]:
        """Returns `ratio`, numbers divided by their scale, rounded half to even and clipped."""
        clipped = np.clip(np.rint(ratio) if self.is_integer else ratio, -self.largest, self.largest)
        rounded: NDArray[Any] = clipped.astype(self.numpy_dtype)
        return rounded


INT8 = LowBitType("int8", ir.DataType.INT8, np.int8, 127)
INT4 = LowBitType("int4", ir.DataType.INT4, ml_dtypes.int4, 7)
FLOAT8 = LowBitType("fp8", ir.DataType.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn, 448, is_integer=False)

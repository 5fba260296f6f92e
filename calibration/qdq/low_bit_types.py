"""The numbers of 8 and 4 bits that graphs hold, all symmetric about zero but one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True)
class LowBitType:
    """A number of few bits.

    Attributes:
        name: as in the names of tensors.
        dtype: in ONNX.
        numpy: in numpy.
        largest: magnitude that is used; integers leave out their lowest, to be symmetric.
        whole: whether these are integers.
    """

    name: str
    dtype: ir.DataType
    numpy_dtype: Any
    largest: float
    is_integer: bool = True

    def quantized(self, ratio: NDArray[np.float32]) -> NDArray[Any]:
        """Rounds numbers that were divided by their scale, ties to even, and clips them."""
        clipped = np.clip(np.rint(ratio) if self.is_integer else ratio, -self.largest, self.largest)
        rounded: NDArray[Any] = clipped.astype(self.numpy_dtype)
        return rounded


INT8 = LowBitType("int8", ir.DataType.INT8, np.int8, 127)
INT4 = LowBitType("int4", ir.DataType.INT4, ml_dtypes.int4, 7)
FLOAT8 = LowBitType("fp8", ir.DataType.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn, 448, is_integer=False)

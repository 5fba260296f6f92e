"""Checks whether ONNX Runtime multiplies 8-bit integers exactly on this processor."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime as ort

SATURATION_REASON = (
    "this processor's kernels add two products of bytes in 16 bits, which saturate: it has no "
    "integer dot products (VNNI)"
)
_WIDTH = 32


@cache
def byte_products_are_exact() -> bool:
    """Returns whether the product of uint8 and int8 matrices is exact for the largest values.

    Without VNNI, the kernels of ONNX Runtime for x86 add pairs of products in signed 16 bits, where
    two products of 255 * 127 do not fit. There an int8 variant is less accurate than its weights
    allow, so the tests of its accuracy run only on processors with exact products.
    """
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (uint8[5,{_WIDTH}] x, int8[{_WIDTH},16] w) => (int32[5,16] y) {{
            y = MatMulInteger (x, w)
        }}"""
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x, w = np.full((5, _WIDTH), 255, np.uint8), np.full((_WIDTH, 16), 127, np.int8)
    return bool((np.asarray(session.run(None, {"x": x, "w": w})[0]) == 255 * 127 * _WIDTH).all())

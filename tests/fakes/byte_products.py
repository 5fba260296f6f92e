"""Whether this processor's kernels multiply bytes exactly, as int8 variants suppose."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime as ort

SATURATES = (
    "this processor's kernels add two products of bytes in 16 bits, which saturate: it has no "
    "integer dot products (VNNI)"
)
_WIDTH = 32


@cache
def byte_products_are_exact() -> bool:
    """Whether ONNX Runtime's product of uint8 and int8 is exact here, where terms are largest.

    Without VNNI its kernels for x86 add pairs of products as signed 16 bits: two of 255 * 127 do
    not fit. So an int8 variant is as good as it should be on some processors only, and how close it
    is to float is tested on those.
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

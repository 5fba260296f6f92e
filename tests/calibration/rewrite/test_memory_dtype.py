"""The memory between an encoder and a decoder of different float types."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from hybrid_deploy.calibration.rewrite.memory_dtype import match_memory_dtype
from hybrid_deploy.contract import GraphRole
from tests.calibration.rewrite.test_encoder import checked

Build = Callable[..., ir.Model]

# `mask` is an output that no decoder input matches, `hidden` is no output
ENCODER = """g (FLOAT[b,4] x) => (
    FLOAT[b,4] cross_key_0, FLOAT[b,4] cross_value_0, bool[b,4] mask
) {
    hidden = Relu (x)
    cross_key_0 = Neg (hidden)
    cross_value_0 = Abs (cross_key_0)
    mask = IsNaN (x)
}"""
DECODER = """g (int64[b] token, FLOAT[b,4] cross_key_0, FLOAT[b,4] cross_value_0) => (
    FLOAT[b,4] y
) {
    y = Add (cross_key_0, cross_value_0)
}"""
NUMBERS = {"float": (ir.DataType.FLOAT, np.float32), "float16": (ir.DataType.FLOAT16, np.float16)}


def models(build: Build, encoder: str, decoder: str) -> tuple[ir.Model, dict[GraphRole, ir.Model]]:
    roles = (GraphRole.PREFILL, GraphRole.STEP)
    decoders = {role: build(DECODER.replace("FLOAT", decoder), {}) for role in roles}
    return build(ENCODER.replace("FLOAT", encoder), {}), decoders


@pytest.mark.parametrize(("encoder", "decoder"), [("float", "float16"), ("float16", "float")])
def test_the_memory_has_the_dtype_of_the_decoder_input(
    build: Build, encoder: str, decoder: str
) -> None:
    model, decoders = models(build, encoder, decoder)
    match_memory_dtype(model, decoders)
    checked(model)
    dtype, number = NUMBERS[decoder]
    encoder_dtype, encoder_number = NUMBERS[encoder]
    assert [(v.name, v.dtype) for v in model.graph.outputs] == [
        ("cross_key_0", dtype), ("cross_value_0", dtype), ("mask", ir.DataType.BOOL),
    ]  # fmt: skip
    casts = [node for node in model.graph if node.op_type == "Cast"]
    assert [(v.name, v.dtype) for cast in casts for v in cast.inputs if v is not None] == [
        ("cross_key_0_wide", encoder_dtype), ("cross_value_0_wide", encoder_dtype),
    ]  # fmt: skip
    x = np.array([[-1, 0.1, 1 / 3, 2]], encoder_number)
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    key, value, _ = session.run(None, {"x": x})
    assert key.dtype == value.dtype == number
    np.testing.assert_array_equal(key, -np.maximum(x, 0).astype(number))
    np.testing.assert_array_equal(value, np.maximum(x, 0).astype(number))


@pytest.mark.parametrize("floats", ["float", "float16"])
def test_nothing_is_added_where_the_types_agree(build: Build, floats: str) -> None:
    model, decoders = models(build, floats, floats)
    before = ir.to_proto(model).SerializeToString()
    match_memory_dtype(model, decoders)
    assert ir.to_proto(model).SerializeToString() == before

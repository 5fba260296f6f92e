from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from hybrid_deploy.calibration.half_precision.float16 import convert_to_half
from hybrid_deploy.calibration.half_precision.float16_range import (
    FLOAT16,
    overflowing_tensors,
)
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import CalibrationError
from tests.closeness import assert_close

Build = Callable[..., ir.Model]

FP16, FP32 = ir.DataType.FLOAT16, ir.DataType.FLOAT


def test_logits_stay_float32_and_the_inside_is_half(build: Build) -> None:
    text = "g (float[b,4] cross_key_0) => (float[b,3] logits) { logits = MatMul (cross_key_0, w) }"
    model = build(text, {"w": np.ones((4, 3), np.float32)})
    convert_to_half(model, GraphRole.STEP, FLOAT16)
    assert [node.op_type for node in model.graph] == ["MatMul", "Cast"]
    assert model.graph.inputs[0].dtype is FP16
    assert (model.graph.outputs[0].name, model.graph.outputs[0].dtype) == ("logits", FP32)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_an_encoder_takes_float32_and_returns_half(build: Build) -> None:
    text = "g (float[b,4] image) => (float[b,3] cross_key_0) { cross_key_0 = MatMul (image, w) }"
    model = build(text, {"w": np.ones((4, 3), np.float32)})
    convert_to_half(model, GraphRole.ENCODER, FLOAT16)
    assert [node.op_type for node in model.graph] == ["Cast", "MatMul"]
    assert model.graph.inputs[0].dtype is FP32
    assert model.graph.outputs[0].dtype is FP16
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_dtype_attributes_are_converted(build: Build) -> None:
    text = """g (bool[b] flag, int64[1] size) => (float[b] logits) {
        a = Cast <to: int = 1> (flag)
        z = ConstantOfShape <value: tensor = float[1] {-1e9}> (size)
        k = Constant <value_float: float = 0.5> ()
        s = Add (a, z)
        logits = Mul (s, k)
    }"""
    model = build(text, {})
    convert_to_half(model, GraphRole.STEP, FLOAT16)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    cast, fill, constant = list(model.graph)[:3]
    assert cast.attributes["to"].as_int() == FP16
    assert fill.attributes["value"].as_tensor().numpy() == np.float16(-FLOAT16.largest / 2)
    assert constant.attributes["value"].as_tensor().dtype is FP16


def test_operators_without_float16_keep_float32(build: Build) -> None:
    text = """g (float[1,1,4,4] image, float limit) => (float[1,1,8,8] up, float[n] r) {
        up = Resize <mode: string = "nearest"> (image, , scales)
        r = Range (zero, limit, one)
    }"""
    constants = {
        "scales": np.array([1, 1, 2, 2], np.float32),
        "zero": np.float32(0).reshape(()),
        "one": np.float32(1).reshape(()),
    }
    model = build(text, constants)
    convert_to_half(model, GraphRole.ENCODER, FLOAT16)
    assert model.graph.initializers["scales"].dtype is FP32
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_overflowing_tensors_stay_float32(build: Build) -> None:
    text = """g (float[b,4] image) => (float[b,4] cross_key_0) {
        large = Mul (image, factor)
        normed = LayerNormalization <axis: int = -1> (large, gain)
        cross_key_0 = MatMul (normed, w)
    }"""
    constants = {
        "factor": np.float32(3e4),
        "gain": np.ones(4, np.float32),
        "w": np.eye(4, dtype=np.float32),
    }
    model = build(text, constants)
    image = np.array([[1, 2, 3, 4]], np.float32)
    expected = run(model, image)
    overflowing = overflowing_tensors({"large": 1.2e5, "normed": 1.4}, FLOAT16)
    assert overflowing == {"large"}
    convert_to_half(model, GraphRole.ENCODER, FLOAT16, overflowing)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    dtypes = {str(v.name): v.dtype for node in model.graph for v in node.outputs}
    assert dtypes["large"] is FP32 and dtypes["cross_key_0"] is FP16
    assert model.graph.initializers["w"].dtype is FP16
    assert model.graph.initializers["gain"].dtype is FP32
    assert_close(run(model, image), expected, share=2e-3)  # float16 has 11 bits


def test_memory_that_overflows_is_refused(build: Build) -> None:
    text = "g (float[b,4] image) => (float[b,3] cross_key_0) { cross_key_0 = MatMul (image, w) }"
    model = build(text, {"w": np.ones((4, 3), np.float32)})
    with pytest.raises(CalibrationError, match="encoder/cross_key_0 overflows float16"):
        convert_to_half(model, GraphRole.ENCODER, FLOAT16, {"cross_key_0"})


def run(model: ir.Model, image: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"image": image})[0], np.float32)

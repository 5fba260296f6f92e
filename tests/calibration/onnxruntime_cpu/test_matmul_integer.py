"""DequantizeLinear, MatMul and bias as one operator of ONNX Runtime's CPU backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from hybrid_deploy.calibration.onnxruntime_cpu.matmul_integer import fuse_matmul_integer
from hybrid_deploy.calibration.qdq.linear_operators import cpu_tensors_to_quantize, linear_operators
from hybrid_deploy.calibration.qdq.low_bit_types import INT8
from hybrid_deploy.calibration.qdq.qdq_pairs import ActivationForm, insert_qdq_pairs
from hybrid_deploy.calibration.qdq.stored_weights import store_weight
from hybrid_deploy.calibration.recipes import EncoderForm
from hybrid_deploy.calibration.rewrite.encoder import quantize_encoder
from hybrid_deploy.calibration.statistics.ranges import Range
from tests.calibration.rewrite.test_encoder import checked, optimized
from tests.closeness import assert_close_in_float32
from tests.fakes.byte_products import SATURATION_REASON, byte_products_are_exact
from tests.fakes.scales_of import scales_of

Build = Callable[..., ir.Model]

LINEAR = """g (float[b,n,32] x) => (float[b,n,16] y) {
    m = MatMul (x, w)
    s = Add (m, bias)
    y = Relu (s)
}"""
LINEAR_TO_OUTPUT = LINEAR.replace("y = Relu (s)", "").replace("s = Add", "y = Add")
BIAS_AS_INPUT = LINEAR.replace("x)", "x, float[16] bias)")
TWO_USERS = LINEAR.replace("y = Relu (s)", "y = Mul (s, m)")
ONE_SUMMAND = LINEAR.replace("Add (m, bias)", "Sum (m)")
RANGE = Range(-3, 4)  # asymmetric: its zero point is not 128


@pytest.fixture
def weight() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)


def quantized(
    build: Build, text: str, block_size: int | None = None, **constants: NDArray[Any]
) -> ir.Model:
    """Returns an encoder in the CPU form, before its operators are fused."""
    model = build(text, constants)
    targets = linear_operators(model.graph)
    tensors = cpu_tensors_to_quantize(model.graph, targets)
    insert_qdq_pairs(model.graph, tensors, {"x": RANGE}, ActivationForm.UINT8)
    for linear in targets:
        store_weight(model.graph, linear, INT8, block_size)
    return model


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("text", [LINEAR, LINEAR.replace("(m, bias)", "(bias, m)")])
def test_a_product_and_its_bias_are_one_operator(
    build: Build, weight: NDArray[np.float32], tmp_path: Path, text: str
) -> None:
    bias = np.linspace(-2, 2, 16, dtype=np.float32)
    model = quantized(build, text, w=weight, bias=bias)
    x = np.random.default_rng(1).uniform(-3, 4, (2, 5, 32)).astype(np.float32)
    expected = optimized(model, tmp_path)[0].run(None, {"x": x})[0]
    assert fuse_matmul_integer(model) == 1
    RemoveUnusedNodesPass()(model)
    session, kernels = optimized(model, tmp_path)
    assert kernels["MatMulIntegerToFloat"] == 1
    assert kernels["MatMul"] == kernels["Add"] == kernels["Sum"] == 0
    # both sum the same integers, exactly; the factor and the bias are rounded to float32
    actual = session.run(None, {"x": x})[0]
    assert_close_in_float32(actual, expected)
    if not byte_products_are_exact():
        pytest.skip(SATURATION_REASON)
    exact = np.maximum(x @ weight + bias, 0)
    # 255 steps for the activations, 254 for each channel's weights
    assert 0 < np.abs(actual - exact).max() < 0.03 * exact.max()


def test_the_cpu_form_of_an_encoder_has_the_operator(
    build: Build, weight: NDArray[np.float32], tmp_path: Path
) -> None:
    model = build(LINEAR, {"w": weight, "bias": np.ones(16, np.float32)})
    quantize_encoder(model, scales_of({"x": RANGE}), EncoderForm.INT8_CPU)
    assert operators(model) == ["QuantizeLinear", "MatMulIntegerToFloat", "Relu"]
    assert model.graph.opset_imports["com.microsoft"] == 1
    portable = build(LINEAR, {"w": weight, "bias": np.ones(16, np.float32)})
    quantize_encoder(portable, scales_of({"x": RANGE}), EncoderForm.INT8)
    checked(portable)  # the checker accepts ONNX operators only


@pytest.mark.parametrize(
    ("text", "constants", "block_size"),
    [
        (BIAS_AS_INPUT, {}, None),
        (LINEAR, {"bias": np.ones((1, 16), np.float32)}, None),
        (LINEAR, {"bias": np.ones(1, np.float32)}, None),
        (LINEAR_TO_OUTPUT, {"bias": np.ones(16, np.float32)}, None),
        (TWO_USERS, {"bias": np.ones(16, np.float32)}, None),
        (ONE_SUMMAND, {}, None),
        (LINEAR, {"bias": np.ones(16, np.float32)}, 32),
    ],
    ids=[
        "bias not constant", "bias of two dimensions", "bias of one number", "output of the graph",
        "product used twice", "nothing added", "weight in blocks",
    ],
)  # fmt: skip
def test_other_products_are_left_alone(
    build: Build, weight: NDArray[np.float32], tmp_path: Path,
    text: str, constants: dict[str, NDArray[Any]], block_size: int | None,
) -> None:  # fmt: skip
    model = quantized(build, text, block_size, w=weight, **constants)
    before = operators(model)
    assert fuse_matmul_integer(model) == 0
    assert operators(model) == before
    assert "com.microsoft" not in model.graph.opset_imports


def test_a_float_product_is_left_alone(build: Build, weight: NDArray[np.float32]) -> None:
    model = build(LINEAR, {"w": weight, "bias": np.ones(16, np.float32)})
    assert fuse_matmul_integer(model) == 0
    assert operators(model) == ["MatMul", "Add", "Relu"]

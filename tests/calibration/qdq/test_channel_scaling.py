from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from hybrid_deploy.calibration.qdq.channel_scaling import (
    ProductQuantization,
    best_channel_scale,
    round_trip_per_channel,
    scale_channels,
)
from hybrid_deploy.calibration.qdq.linear_operators import linear_operators
from hybrid_deploy.calibration.qdq.low_bit_types import INT8
from hybrid_deploy.calibration.statistics.scales import Channels
from tests.closeness import assert_close_in_float32

Build = Callable[..., ir.Model]
PRODUCT = "g (float[b,16] x) => (float[b,8] y) { y = MatMul (x, w) }"
BEHIND_NORMALIZATION = """g (float[b,16] x) => (float[b,8] y) {
    n = LayerNormalization <axis: int = -1> (x, gain, shift)
    y = MatMul (n, w)
}"""
NORMED_AND_USED_TWICE = """g (float[b,16] x) => (float[b,8] y, float[b,16] z) {
    n = LayerNormalization <axis: int = -1> (x, gain, shift)
    y = MatMul (n, w)
    z = Add (n, x)
}"""
BEHIND_RELU = """g (float[b,16] x) => (float[b,8] y) {
    m = MatMul (x, before)
    h = Add (m, shift)
    r = Relu (h)
    y = MatMul (r, w)
}"""
QUANTIZATION = ProductQuantization(
    partial(round_trip_per_channel, low_bit_type=INT8), quantizes_activations=True
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def run(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return [np.asarray(output) for output in session.run(None, {"x": x})]


def channels_with_outliers() -> Channels:
    largest = np.ones(16, np.float32)
    largest[3] = 80
    return Channels(largest, (largest / 4).astype(np.float32))


def test_outliers_move_into_the_weight(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(16, 8)).astype(np.float32)
    scale = best_channel_scale([weight], channels_with_outliers(), QUANTIZATION, 0.05)
    assert scale is not None
    assert scale[3] > 5 * np.delete(scale, 3).max(), "the largest channel has the largest divisor"


def test_channels_of_equal_size_are_not_scaled(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(16, 8)).astype(np.float32)
    channels = Channels(np.ones(16, np.float32), np.full(16, 0.3, np.float32))
    assert best_channel_scale([weight], channels, QUANTIZATION, 0.05) is None


def test_zero_channels_get_finite_positive_scales(rng: np.random.Generator) -> None:
    channels = channels_with_outliers()
    channels.largest[5] = channels.mean[5] = 0
    weight = rng.normal(size=(16, 8)).astype(np.float32)
    weight[7] = 0
    scale = best_channel_scale([weight], channels, QUANTIZATION, 0.05)
    assert scale is not None and np.isfinite(scale).all() and (scale > 0).all()


@pytest.mark.parametrize(
    ("text", "added"),
    [
        (PRODUCT, ["Mul"]),
        (BEHIND_NORMALIZATION, []),
        (NORMED_AND_USED_TWICE, ["Mul"]),
        (BEHIND_RELU, []),
    ],
)
def test_scaling_keeps_the_product(
    build: Build, rng: np.random.Generator, text: str, added: list[str]
) -> None:
    constants = {
        "w": rng.normal(size=(16, 8)).astype(np.float32),
        "before": rng.normal(size=(16, 16)).astype(np.float32),
        "gain": rng.uniform(0.5, 2, 16).astype(np.float32),
        "shift": rng.normal(size=16).astype(np.float32),
    }
    initializers = {name: array for name, array in constants.items() if name in text}
    model, x = build(text, initializers), rng.normal(size=(5, 16)).astype(np.float32)
    outputs_before, operators_before = run(model, x), [node.op_type for node in model.graph]
    scale = rng.uniform(0.2, 5, 16).astype(np.float32)
    scaled_products = [
        linear for linear in linear_operators(model.graph) if linear.weight.name == "w"
    ]
    scale_channels(model.graph, scaled_products, scale)
    for expected, actual in zip(outputs_before, run(model, x), strict=True):
        assert_close_in_float32(actual, expected)
    operators_after = [node.op_type for node in model.graph]
    assert sorted(operators_after) == sorted(operators_before + added)

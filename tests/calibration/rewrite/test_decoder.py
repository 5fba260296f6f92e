"""Decoder graphs with stored weights: correct, shared, and run by ONNX Runtime's kernels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from hybrid_deploy.calibration.recipes import DecoderForm
from hybrid_deploy.calibration.rewrite.decoder import DecoderRounding, quantize_decoder
from hybrid_deploy.calibration.statistics.ranges import Range
from hybrid_deploy.calibration.statistics.scales import Channels
from hybrid_deploy.contract import GraphRole
from tests.calibration.rewrite.test_encoder import checked, optimized
from tests.fakes.byte_products import SATURATION_REASON, byte_products_are_exact
from tests.fakes.scales_of import merged_scales, scales_of

Build = Callable[..., ir.Model]
Constants = dict[str, NDArray[np.float32]]

STEP = """g (float[b,64] x) => (float[b,64] y) {
    m = MatMul (x, w1)
    h = Add (m, b1)
    r = Relu (h)
    p = MatMul (r, w2)
    y = Add (x, p)
}"""
NARROW = "g (float[b,40] x) => (float[b,24] y) { y = MatMul (x, w1) }"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def constants(rng: np.random.Generator) -> Constants:
    weights = {n: rng.normal(size=(64, 64)).astype(np.float32) for n in ("w1", "w2")}
    return weights | {"b1": np.ones(64, np.float32)}


def run(model: ir.Model, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize(
    ("form", "block_size", "error"),
    [
        (DecoderForm.INT8_WEIGHTS, None, 0.03),
        (DecoderForm.INT8_WEIGHTS, 32, 0.03),
        # 15 levels for 32 weights: some 5 % of a product of 64 random numbers
        (DecoderForm.INT4_WEIGHTS, 32, 0.2),
        (DecoderForm.INT4_WEIGHTS, None, 0.25),
    ],
)
def test_weights_become_packed_products(
    build: Build, rng: np.random.Generator, tmp_path: Path, form: DecoderForm,
    block_size: int | None, error: float,
) -> None:  # fmt: skip
    weights = constants(rng)
    model = build(STEP, weights)
    quantize_decoder({GraphRole.STEP: model}, form, block_size=block_size)
    checked(model)
    session, operators = optimized(model, tmp_path)
    assert operators["MatMulNBits"] == 2
    assert operators["DequantizeLinear"] == 0
    x = rng.normal(size=(1, 64)).astype(np.float32)
    expected = x + np.maximum(x @ weights["w1"] + 1, 0) @ weights["w2"]
    actual = session.run(None, {"x": x})[0]
    # MatMulNBits itself rounds activations to int8
    assert 0 < np.abs(actual - expected).max() < error * np.abs(expected).max()


def test_a_weight_without_blocks_is_int8_in_place_of_int4(
    build: Build, rng: np.random.Generator
) -> None:
    model = build(NARROW, {"w1": rng.normal(size=(40, 24)).astype(np.float32)})
    quantize_decoder({GraphRole.STEP: model}, DecoderForm.INT4_WEIGHTS)
    stored = model.graph.initializers["w1_int8"]
    assert stored.const_value is not None and stored.const_value.dtype is ir.DataType.INT8


def test_a_smaller_block_is_used_where_the_requested_one_does_not_divide(
    build: Build, rng: np.random.Generator
) -> None:
    model = build(STEP, constants(rng))
    quantize_decoder({GraphRole.STEP: model}, DecoderForm.INT4_WEIGHTS, block_size=128)
    scale = model.graph.initializers["w1_scale"].const_value
    assert scale is not None and tuple(scale.shape) == (1, 64), "64 weights are one block of 64"


@pytest.mark.parametrize("form", [DecoderForm.INT8, DecoderForm.FLOAT8])
def test_activations_are_quantized_too(
    build: Build, rng: np.random.Generator, form: DecoderForm
) -> None:
    weights = constants(rng)
    model = build(STEP, weights)
    x = rng.normal(size=(4, 64)).astype(np.float32)
    hidden = np.maximum(x @ weights["w1"] + 1, 0)
    ranges = {"x": Range(float(x.min()), float(x.max())), "r": Range(0, float(hidden.max()))}
    rounding = DecoderRounding(scales_of(ranges, role=GraphRole.STEP))
    quantize_decoder({GraphRole.STEP: model}, form, rounding)
    graph = checked(model)
    assert [node.op_type for node in graph.node].count("QuantizeLinear") == 2
    expected = x + hidden @ weights["w2"]
    # ReluQuantRewrite, an optimizer of ONNX Runtime, drops a Relu before a float8 tensor
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(),
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["ReluQuantRewrite"],
    )
    if form is DecoderForm.INT8 and not byte_products_are_exact():
        pytest.skip(SATURATION_REASON)
    actual = session.run(None, {"x": x})[0]
    assert 0 < np.abs(actual - expected).max() < 0.08 * np.abs(expected).max()


def test_named_operators_stay_float(build: Build, rng: np.random.Generator) -> None:
    model = build(STEP, constants(rng))
    in_float = {GraphRole.STEP: {"w1"}}
    rounding = DecoderRounding(in_float=in_float)
    quantize_decoder({GraphRole.STEP: model}, DecoderForm.INT8_WEIGHTS, rounding)
    assert {"w1", "w2_int8"} <= set(model.graph.initializers)
    assert "w2" not in model.graph.initializers


def test_prefill_has_the_ranges_of_the_step(build: Build, rng: np.random.Generator) -> None:
    weights = constants(rng)
    graphs = {GraphRole.STEP: build(STEP, weights), GraphRole.PREFILL: build(STEP, weights)}
    ranges = {"x": Range(-3, 3), "r": Range(0, 9)}
    rounding = DecoderRounding(scales_of(ranges, role=GraphRole.STEP))
    quantize_decoder(graphs, DecoderForm.INT8, rounding)
    scales = [
        model.graph.initializers["x/0_scale"].const_value.numpy()  # type: ignore[union-attr]
        for model in graphs.values()
    ]
    assert scales[0] == scales[1] == np.float32(3 / 127)


def test_channels_with_large_activations_lose_less(build: Build, rng: np.random.Generator) -> None:
    """Activation-aware scaling: an eighth of the channels carries most of the product."""
    weights = constants(rng)
    magnitudes = np.ones(64, np.float32)
    magnitudes[::8] = 30
    x = (rng.normal(size=(200, 64)) * magnitudes).astype(np.float32)
    expected = x + np.maximum(x @ weights["w1"] + 1, 0) @ weights["w2"]
    hidden = np.maximum(x @ weights["w1"] + 1, 0)
    channels = {
        name: Channels(np.abs(array).max(0), np.abs(array).mean(0).astype(np.float32))
        for name, array in (("x", x), ("r", hidden))
    }
    errors = []
    for scales in (None, scales_of({}, channels, GraphRole.STEP)):
        model = build(STEP, weights)
        rounding = DecoderRounding(scales)
        quantize_decoder({GraphRole.STEP: model}, DecoderForm.INT4_WEIGHTS, rounding, 64)
        checked(model)
        errors.append(float(((run(model, x) - expected) ** 2).mean()))
    assert errors[1] < 0.8 * errors[0]


def test_scales_depend_on_the_means_of_the_step(build: Build, rng: np.random.Generator) -> None:
    weights = constants(rng)
    x = rng.normal(size=(4, 64)).astype(np.float32)
    spread = np.geomspace(0.01, 10, 64).astype(np.float32)
    flat = np.full(64, 1, np.float32)

    def quantized(step: NDArray[np.float32], prefill: NDArray[np.float32]) -> NDArray[np.float32]:
        graphs = {role: build(STEP, weights) for role in (GraphRole.PREFILL, GraphRole.STEP)}
        names = ("x", "r")
        parts = [
            scales_of(
                {name: Range(-10, 10) for name in names},
                {name: Channels(10 * spread, mean) for name in names},
                role,
            )
            for role, mean in ((GraphRole.STEP, step), (GraphRole.PREFILL, prefill))
        ]
        quantize_decoder(graphs, DecoderForm.INT4_WEIGHTS, DecoderRounding(merged_scales(parts)))
        return run(graphs[GraphRole.STEP], x)

    both_spread = quantized(spread, spread)
    assert np.array_equal(quantized(spread, flat), both_spread)
    assert not np.array_equal(quantized(flat, spread), both_spread)

import collections
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from hybrid_deploy.calibration.recipes import EncoderForm
from hybrid_deploy.calibration.rewrite.encoder import quantize_encoder
from hybrid_deploy.calibration.statistics.ranges import Range
from hybrid_deploy.calibration.statistics.scales import Channels
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import CalibrationError
from tests.fakes.byte_products import SATURATION_REASON, byte_products_are_exact
from tests.fakes.scales_of import scales_of

Build = Callable[..., ir.Model]

FORMS = (EncoderForm.INT8, EncoderForm.INT8_CPU)

RESIDUAL = """g (float[1,8,6,6] x) => (float[1,8,3,3] y) {
    a = Conv <pads: ints = [1,1,1,1]> (x, w1, b1)
    r = Relu (a)
    c = Conv <pads: ints = [1,1,1,1]> (r, w2, b2)
    s = Add (c, r)
    t = Relu (s)
    y = MaxPool <kernel_shape: ints = [2,2], strides: ints = [2,2]> (t)
}"""
PROJECTION = """g (float[b,n,32] x) => (float[b,n,16] y, float[b,n,16] z) {
    y = MatMul (x, w1)
    m = MatMul (x, w2)
    z = Add (m, b2)
}"""
Constants = dict[str, NDArray[np.float32]]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def convolutions(rng: np.random.Generator) -> Constants:
    weights = {n: rng.normal(size=(8, 8, 3, 3)).astype(np.float32) * 0.1 for n in ("w1", "w2")}
    return weights | {n: rng.normal(size=8).astype(np.float32) for n in ("b1", "b2")}


def checked(model: ir.Model) -> onnx.GraphProto:
    """Returns the graph as a proto, after the ONNX checker accepted it."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto.graph


def optimized(model: ir.Model, folder: Path) -> tuple[ort.InferenceSession, collections.Counter]:  # type: ignore[type-arg]
    """Returns a session of a graph, and the operator counts of the optimized graph."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    nodes = onnx.load(folder / "optimized.onnx").graph.node
    return session, collections.Counter(node.op_type for node in nodes)


def ranges(model: ir.Model, x: NDArray[np.float32]) -> dict[str, Range]:
    """Returns the range of every tensor of a float graph on one input."""
    observed = model.clone()
    names = [v.name for node in observed.graph for v in node.outputs if v.dtype is not None]
    observed.graph.outputs[:] = [v for node in observed.graph for v in node.outputs]
    session = ort.InferenceSession(
        ir.to_proto(observed).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    arrays = dict(zip(names, session.run(None, {"x": x}), strict=True)) | {"x": x}
    return {str(n): Range(float(a.min()), float(a.max())) for n, a in arrays.items()}


def test_portable_form_quantizes_inputs_and_skip_branches(
    build: Build, rng: np.random.Generator
) -> None:
    model = build(RESIDUAL, convolutions(rng))
    x = rng.normal(size=(1, 8, 6, 6)).astype(np.float32)
    quantize_encoder(model, scales_of(ranges(model, x)), EncoderForm.INT8)
    graph = checked(model)
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    # nothing between a convolution and its activation, or between it and the addition
    assert made_by["r"].input == ["a"]
    assert made_by["s"].input[0] == "c"
    assert made_by[made_by["s"].input[1]].op_type == "DequantizeLinear"
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[2]].dtype == np.int8
            assert constants[node.input[2]] == 0
        if node.op_type == "Conv":
            activation, weight, bias = node.input
            assert made_by[activation].op_type == made_by[weight].op_type == "DequantizeLinear"
            assert made_by[weight].attribute[0].i == 0
            assert constants[made_by[weight].input[1]].shape == (8,)
            assert constants[bias].dtype == np.float32
    assert not {"w1", "w2"} & set(constants), "float weights stay out of the file"


@pytest.mark.parametrize("form", FORMS)
def test_encoder_stays_close_to_float(
    build: Build, rng: np.random.Generator, form: EncoderForm
) -> None:
    model = build(RESIDUAL, convolutions(rng))
    x = rng.normal(size=(1, 8, 6, 6)).astype(np.float32)
    float_session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = float_session.run(None, {"x": x})[0]
    quantize_encoder(model, scales_of(ranges(model, x)), form)
    int8_session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    actual = int8_session.run(None, {"x": x})[0]
    # 127 steps per tensor, two layers: 3 % of the largest number is well above rounding
    assert 0 < np.abs(actual - expected).max() < 0.03 * np.abs(expected).max()


def test_cpu_form_becomes_integer_convolutions(
    build: Build, rng: np.random.Generator, tmp_path: Path
) -> None:
    model = build(RESIDUAL, convolutions(rng))
    x = rng.normal(size=(1, 8, 6, 6)).astype(np.float32)
    quantize_encoder(model, scales_of(ranges(model, x)), EncoderForm.INT8_CPU)
    _, operators = optimized(model, tmp_path)
    assert operators["QLinearConv"] == 2
    assert operators["Conv"] == operators["FusedConv"] == 0


@pytest.mark.parametrize("form", FORMS)
def test_projections_of_one_tensor_become_integer_products(
    build: Build, rng: np.random.Generator, tmp_path: Path, form: EncoderForm
) -> None:
    constants = {n: rng.normal(size=(32, 16)).astype(np.float32) for n in ("w1", "w2")}
    model = build(PROJECTION, constants | {"b2": np.ones(16, np.float32)})
    quantize_encoder(model, scales_of({"x": Range(-3, 3)}), form)
    session, operators = optimized(model, tmp_path)
    assert operators["MatMulIntegerToFloat"] == 2
    x = rng.uniform(-3, 3, (1, 5, 32)).astype(np.float32)
    if not byte_products_are_exact():
        pytest.skip(SATURATION_REASON)
    expected = x @ constants["w1"]
    error = np.abs(session.run(None, {"x": x})[0] - expected).max()
    assert error < 0.03 * np.abs(expected).max()


def test_missing_range_is_named(build: Build, rng: np.random.Generator) -> None:
    model = build(RESIDUAL, convolutions(rng))
    with pytest.raises(CalibrationError, match="the scales hold no range of x; calibrate"):
        quantize_encoder(model, scales_of({"r": Range(0, 1)}), EncoderForm.INT8)


NORMED = """g (float[b,n,16] x) => (float[b,n,8] y) {
    h = LayerNormalization <axis: int = -1> (x, gain, shift)
    y = MatMul (h, w)
}"""


@pytest.mark.parametrize("form", FORMS)
def test_scales_serve_for_more_than_one_variant(
    build: Build, rng: np.random.Generator, form: EncoderForm
) -> None:
    """Scaled channels change a range; the next variant must still see what was observed."""
    constants = {
        "gain": np.where(np.arange(16) == 3, 40, 1).astype(np.float32),
        "shift": np.zeros(16, np.float32),
        "w": rng.normal(size=(16, 8)).astype(np.float32),
    }
    largest = np.where(np.arange(16) == 3, 80, 2).astype(np.float32)
    channels = {"h": Channels(largest, largest / np.float32(4))}
    scales = scales_of({"x": Range(-3, 3), "h": Range(-80, 80), "y": Range(-9, 9)}, channels)
    models = [build(NORMED, constants) for _ in range(2)]
    for model in models:
        quantize_encoder(model, scales, form)
    first, second = (ir.to_proto(model).SerializeToString() for model in models)
    assert first == second
    assert scales.of(GraphRole.ENCODER)["h"] == Range(-80, 80)


SOUND = """g (float[1,8,40] x) => (float[1,20,4] y) {
    a = Conv <pads: ints = [1,1], strides: ints = [2]> (x, w1, b1)
    r = Relu (a)
    t = Transpose <perm: ints = [0,2,1]> (r)
    y = MatMul (t, w2)
}"""


@pytest.mark.parametrize("form", FORMS)
def test_convolutions_over_one_axis_stay_float_on_a_cpu(
    build: Build, rng: np.random.Generator, form: EncoderForm
) -> None:
    constants = {
        "w1": rng.normal(size=(8, 8, 3)).astype(np.float32),
        "b1": rng.normal(size=8).astype(np.float32),
        "w2": rng.normal(size=(8, 4)).astype(np.float32),
    }
    model = build(SOUND, constants)
    ranges = {name: Range(-3.0, 3.0) for name in ("x", "a", "r", "t")}
    quantize_encoder(model, scales_of(ranges, role=GraphRole.ENCODER), form)
    names = set(model.graph.initializers)
    assert "w2_int8" in names
    assert ("w1" in names) == (form is EncoderForm.INT8_CPU)
    assert ("w1_int8" in names) == (form is EncoderForm.INT8)

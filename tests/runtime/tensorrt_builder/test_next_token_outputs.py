"""The outputs that choose the next token, in networks that TensorRT-RTX parses and compiles.

No GPU runs them here, so a small interpreter in numpy computes the added layers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.runtime.tensorrt_builder import compile as compile_module
from hybrid_deploy.runtime.tensorrt_builder.compile import PlanRequest, compile_with_summary
from hybrid_deploy.runtime.tensorrt_builder.next_token_outputs import add_next_token_outputs
from hybrid_deploy.runtime.tensorrt_builder.optimization_profile import (
    narrow_dims,
    optimization_profile_of,
)
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import TensorRT, load_tensorrt
from hybrid_deploy.target import Flavour
from tests.closeness import assert_close_in_float32, largest

pytestmark = pytest.mark.trt
trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

CAPACITY = 8
STEP = """
<ir_version: 10, opset_import: ["" : 18]>
step (int64[batch] token, int64[batch] position)
  => (REAL[batch,5] logits)
<REAL[2,5] embedding = {1, 2, 3, 9, 5, 6, 7, 8, 9, 10},
 REAL[8,1] places = {0, 1, 2, 3, 4, 5, 6, 7}>
{
  score = Gather (embedding, token)
  place = Gather (places, position)
  logits = Add (score, place)
}
"""
PREFILL = """
<ir_version: 10, opset_import: ["" : 18]>
prefill (int64[batch,length] tokens, int64[batch] position, int64[batch] last)
  => (float[batch,5] logits)
<float[2,5] embedding = {1, 2, 3, 9, 5, 6, 7, 8, 9, 10},
 float[8,1] places = {0, 1, 2, 3, 4, 5, 6, 7},
 int64[1] axis = {1}>
{
  index = Unsqueeze (last, axis)
  newest = GatherND <batch_dims = 1> (tokens, index)
  row = Gather (embedding, newest)
  place = Gather (places, position)
  logits = Add (row, place)
}
"""
CARRIED = """
<ir_version: 10, opset_import: ["" : 18]>
step (int64[batch] token) => (float[batch,5] logits)
<float[2,5] embedding = {1, 2, 3, 9, 5, 6, 7, 8, 9, 10}>
{
  logits = Gather (embedding, token)
}
"""
Values = dict[str, NDArray[Any]]
Extend = Callable[[str], Any]


@pytest.fixture(scope="module")
def vendor() -> TensorRT:
    return load_tensorrt(Flavour.RTX)


@pytest.fixture
def extend(vendor: TensorRT, tmp_path: Path) -> Extend:
    """Parses a graph and adds the outputs to its network."""
    alive: list[object] = []  # a network reads weights that its parser and builder own

    def parsed(text: str) -> Any:
        path = tmp_path / "graph.onnx"
        onnx.save(onnx.parser.parse_model(text), path)
        builder = vendor.module.Builder(vendor.log)
        strongly_typed = vendor.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
        network = builder.create_network(1 << int(strongly_typed))
        parser = vendor.module.OnnxParser(network, vendor.log)
        assert parser.parse_from_file(str(path)), parser.get_error(0).desc()
        alive.extend((builder, network, parser, add_next_token_outputs(vendor, network, CAPACITY)))
        return network

    return parsed


def compute(network: Any, known: Values) -> Values:
    """Computes all tensors that depend on known tensors only, and returns them by name."""
    for layer in map(network.get_layer, range(network.num_layers)):
        names = [layer.get_input(index).name for index in range(layer.num_inputs)]
        if all(name in known for name in names) and layer.type.name in _LAYERS:
            results = _LAYERS[layer.type.name](layer, *(known[name] for name in names))
            for index, result in enumerate(results):
                known[layer.get_output(index).name] = result
    return known


def _constant(layer: Any) -> list[NDArray[Any]]:
    layer.__class__ = trt.IConstantLayer
    return [np.array(layer.weights).reshape(tuple(layer.shape))]


def _elementwise(layer: Any, left: NDArray[Any], right: NDArray[Any]) -> list[NDArray[Any]]:
    layer.__class__ = trt.IElementWiseLayer
    functions = {"SUM": np.add, "SUB": np.subtract, "MIN": np.minimum}
    return [functions[layer.op.name](left, right)]


def _unary(layer: Any, values: NDArray[Any]) -> list[NDArray[Any]]:
    layer.__class__ = trt.IUnaryLayer
    return [{"EXP": np.exp, "LOG": np.log, "NEG": np.negative}[layer.op.name](values)]


def _reduce(layer: Any, values: NDArray[Any]) -> list[NDArray[Any]]:
    layer.__class__ = trt.IReduceLayer
    assert (layer.op.name, layer.axes, layer.keep_dims) == ("SUM", 2, False)
    return [values.sum(1)]


def _topk(layer: Any, values: NDArray[Any]) -> list[NDArray[Any]]:
    layer.__class__ = trt.ITopKLayer
    assert (layer.op.name, layer.k, layer.axes) == ("MAX", 1, 2)
    return [values.max(1, keepdims=True), values.argmax(1, keepdims=True).astype(np.int32)]


def _cast(layer: Any, values: NDArray[Any]) -> list[NDArray[Any]]:
    layer.__class__ = trt.ICastLayer
    types = {"INT32": np.int32, "INT64": np.int64, "FLOAT": np.float32}
    return [values.astype(types[layer.to_type.name])]


def _shuffle(layer: Any, values: NDArray[Any]) -> list[NDArray[Any]]:
    layer.__class__ = trt.IShuffleLayer
    return [values.reshape(tuple(layer.reshape_dims))]


_LAYERS: dict[str, Callable[..., list[NDArray[Any]]]] = {
    "CONSTANT": _constant,
    "ELEMENTWISE": _elementwise,
    "UNARY": _unary,
    "REDUCE": _reduce,
    "TOPK": _topk,
    "CAST": _cast,
    "SHUFFLE": _shuffle,
}
LOGITS = np.array([[1, 5, 2, 4, 0], [-1, -2, -3, -4, -0.5]], np.float32)


def outputs(network: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    tensors = map(network.get_output, range(network.num_outputs))
    return {tensor.name: (tensor.dtype.name, tuple(tensor.shape)) for tensor in tensors}


def test_step_returns_the_inputs_of_the_next_step(extend: Extend) -> None:
    network = extend(STEP.replace("REAL", "float"))
    assert outputs(network) == {
        "logits": ("FLOAT", (-1, 5)),
        "next_token": ("INT64", (-1,)),
        "score": ("FLOAT", (-1,)),
        "next_position": ("INT64", (-1,)),
    }
    values = compute(network, {"logits": LOGITS, "position": np.array([3, CAPACITY - 1])})
    assert values["next_token"].tolist() == [1, 4]
    assert values["next_position"].tolist() == [4, CAPACITY - 1]
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    expected = np.log(probabilities.max(1))
    assert_close_in_float32(values["score"], expected, size=largest(LOGITS))


def test_next_position_of_a_prefill_follows_the_last_real_token(extend: Extend) -> None:
    network = extend(PREFILL)
    known = {"logits": LOGITS, "position": np.array([0, 2]), "last": np.array([2, 5])}
    assert compute(network, known)["next_position"].tolist() == [3, CAPACITY - 1]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_score_of_logits_that_are_not_finite_is_not_finite(extend: Extend, wrong: float) -> None:
    network = extend(STEP.replace("REAL", "float"))
    logits = LOGITS.copy()
    logits[1, 2] = wrong
    with np.errstate(invalid="ignore"):
        values = compute(network, {"logits": logits, "position": np.array([0, 0])})
    assert np.isfinite(values["score"]).tolist() == [True, False]


def test_half_logits_are_scored_in_float32(extend: Extend) -> None:
    network = extend(STEP.replace("REAL", "float16"))
    assert outputs(network)["logits"] == ("HALF", (-1, 5))
    assert outputs(network)["score"] == ("FLOAT", (-1,))


def test_step_without_a_position_returns_no_next_position(extend: Extend) -> None:
    network = extend(CARRIED)
    assert list(outputs(network)) == ["logits", "next_token", "score"]


def test_graph_without_tokens_stays_unchanged(extend: Extend) -> None:
    network = extend(CARRIED.replace("token", "candidates"))
    assert list(outputs(network)) == ["logits"]


def test_graph_without_logits_stays_unchanged(extend: Extend) -> None:
    network = extend(STEP.replace("REAL", "float").replace("logits", "next_token"))
    assert list(outputs(network)) == ["next_token"]


@pytest.mark.parametrize("role", [GraphRole.PREFILL, GraphRole.STEP])
@pytest.mark.parametrize("ranges", [[], ["batch=1", "memory=6", "length=4"]])
def test_engines_are_built_dynamic_and_static(
    tiny_bundle: Bundle, role: GraphRole, ranges: list[str]
) -> None:
    bundle = narrow_dims(tiny_bundle, ranges)
    path, spec = bundle.graph_path("fp32", role), bundle.graph("fp32", role)
    shapes = optimization_profile_of(bundle, spec, role.value)
    request = PlanRequest(role.value, str(path), "rtx:sm_86", shapes, capacity=CAPACITY)
    plan, layers = compile_with_summary(request)
    assert len(plan) > 10_000
    assert layers.parsed["TOPK"] == 1
    assert layers.caches_in_place == ("self_key_0", "self_value_0")


@pytest.mark.parametrize(
    ("role", "recordable"), [(GraphRole.STEP, True), (GraphRole.PREFILL, False)]
)
def test_only_steps_are_recordable(
    vendor: TensorRT,
    tiny_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    role: GraphRole,
    recordable: bool,
) -> None:
    flags: list[bool] = []

    def allow(vendor: TensorRT, network: Any, config: Any) -> None:
        allow_recording(vendor, network, config)
        flags.append(config.get_flag(vendor.member("BuilderFlag", "REQUIRE_USER_ALLOCATION")))

    allow_recording = compile_module._allow_recording
    monkeypatch.setattr(compile_module, "_allow_recording", allow)
    path = tiny_bundle.graph_path("fp32", role)
    bundle = narrow_dims(tiny_bundle, ["batch=1", "memory=6", "length=4"])
    shapes = optimization_profile_of(bundle, bundle.graph("fp32", role), role.value)
    request = PlanRequest(role.value, str(path), "rtx:sm_86", shapes, capacity=CAPACITY)
    assert len(compile_with_summary(request)[0]) > 10_000
    assert flags == [recordable]


def test_inner_tensors_may_have_the_name_of_an_output(tmp_path: Path) -> None:
    path = tmp_path / "step.onnx"
    text = STEP.replace("REAL", "float").replace("batch", "2")
    onnx.save(onnx.parser.parse_model(text), path)
    plan, _ = compile_with_summary(
        PlanRequest("step", str(path), "rtx:sm_86", {}, capacity=CAPACITY)
    )
    assert len(plan) > 10_000

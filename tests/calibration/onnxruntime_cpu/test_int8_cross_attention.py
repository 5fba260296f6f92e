"""Keys and values of the memory in 8 bits: the encoder quantizes them, every step reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from hybrid_deploy.calibration.onnxruntime_cpu import int8_cross_attention
from hybrid_deploy.calibration.onnxruntime_cpu.int8_cross_attention import (
    quantize_cross_attention_memory,
)
from hybrid_deploy.contract import GraphRole
from tests.closeness import assert_close_in_float32, float32_error
from tests.fakes.graph_runs import cleaned, operators, run

Build = Callable[..., ir.Model]
Graphs = dict[GraphRole, ir.Model]
Arrays = dict[str, NDArray[Any]]

MEMORY = "float[b,{key_heads},{size},{width}] cross_key_0, float[b,{key_heads},{size},{width}] "
ENCODER = """g (float[b,n,{rows}] keys, float[b,n,{rows}] values) => ({memory}cross_value_0) {{
    k = Reshape <allowzero: int = 0> (keys, split_memory)
    v = Reshape <allowzero: int = 0> (values, split_memory)
    cross_key_0 = Transpose <perm: ints = [0,2,1,3]> (k)
    cross_value_0 = Transpose <perm: ints = [0,2,1,3]> (v)
}}"""
STEP = """g (float[b,{result}] x, bool[b,1,1,{size}] mask, {memory}cross_value_0) => ({results}) {{
    q = Reshape (x, split)
    a = Attention {attributes} (q, cross_key_0, {value}{mask})
    r = Reshape (a, join)
    y = Relu (r)
    {rest}
}}"""
PREFILL = """g (float[b,t,{result}] x, {memory}cross_value_0) => (float[b,t,{result}] y) {{
    s = Reshape <allowzero: int = 0> (x, split_prompt)
    q = Transpose <perm: ints = [0,2,1,3]> (s)
    a = Attention (q, cross_key_0, cross_value_0)
    m = Transpose <perm: ints = [0,2,1,3]> (a)
    y = Reshape <allowzero: int = 0> (m, join_prompt)
}}"""
DEFAULTS: dict[str, Any] = {
    "heads": 2, "key_heads": 2, "width": 8, "size": "m", "attributes": "", "mask": "",
    "value": "cross_value_0", "rest": "",
}  # fmt: skip
TYPICAL_SIZES = {"m": 7}


@pytest.fixture(autouse=True)
def _without_size_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_cross_attention, "MIN_MEMORY_BYTES", 1)
    monkeypatch.setattr(int8_cross_attention, "MIN_HEAD_WIDTH", 8)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def graphs(build: Build, **changes: Any) -> Graphs:
    settings = DEFAULTS | changes
    heads, key_heads, width = settings["heads"], settings["key_heads"], settings["width"]
    constants = {
        "split_memory": np.array([0, 0, key_heads, width]),
        "split": np.array([-1, heads, 1, width]),
        "join": np.array([-1, heads * width]),
        "split_prompt": np.array([0, 0, heads, width]),
        "join_prompt": np.array([0, 0, heads * width]),
        "more": np.float32(2).reshape(1),
    }
    memory = MEMORY.format(**settings)
    result = f"float[b,{heads * width}] y"
    results = f"{result}, float[b,2,n,8] z" if settings["rest"] else result
    texts = {GraphRole.ENCODER: ENCODER, GraphRole.STEP: STEP, GraphRole.PREFILL: PREFILL}
    models: Graphs = {}
    for role, template in texts.items():
        text = template.format(
            **settings, memory=memory, result=heads * width, results=results, rows=key_heads * width
        )
        words = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
        models[role] = build(text, {name: a for name, a in constants.items() if name in words})
    return models


def encoder_inputs(rng: np.random.Generator, batch: int, length: int, rows: int = 16) -> Arrays:
    """Returns memories whose channels differ by up to four orders of magnitude."""
    channels = 10 ** rng.uniform(-2, 2, rows)
    shape = (batch, length, rows)
    return {n: (rng.normal(size=shape) * channels).astype(np.float32) for n in ("keys", "values")}


def rounded(memory: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns memory (batch, heads, length, width) rounded to 255 steps per input and channel."""
    scale = np.abs(memory).max(2, keepdims=True) / np.float32(127)
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    return np.asarray(np.rint(memory / scale) * scale, np.float32)


@pytest.mark.parametrize(("batch", "length"), [(1, 7), (3, 7), (2, 1), (3, 300)])
@pytest.mark.parametrize(
    "changes",
    [{}, {"attributes": "<scale: float = 0.7>"}, {"heads": 3, "key_heads": 3, "width": 16}],
    ids=["plain", "scale", "wide"],
)
def test_attention_reads_8_bits(
    build: Build, rng: np.random.Generator, changes: dict[str, Any], batch: int, length: int
) -> None:
    models = graphs(build, **changes)
    form = DEFAULTS | changes
    rows = form["heads"] * form["width"]
    memory = run(models[GraphRole.ENCODER], encoder_inputs(rng, batch, length, rows))
    x = rng.normal(size=(batch, rows)).astype(np.float32)
    step_inputs = {"x": x, "mask": np.ones((batch, 1, 1, length), bool)}
    float_step, float_prefill = models[GraphRole.STEP].clone(), models[GraphRole.PREFILL].clone()
    rounded_memory = {name: rounded(array) for name, array in memory.items()}

    assert quantize_cross_attention_memory(models, TYPICAL_SIZES) == 1
    step = cleaned(models[GraphRole.STEP])
    assert operators(step)["GroupQueryAttention"] == 1 and not operators(step)["Attention"]
    rng = np.random.default_rng(0)
    int8_memory = run(models[GraphRole.ENCODER], encoder_inputs(rng, batch, length, rows))
    assert {name: int8_memory[name].dtype for name in memory} == dict.fromkeys(
        memory, np.dtype(np.int8)
    )
    # float sums in another order; a query is scaled before its product, not after
    actual, expected = (
        run(step, step_inputs | int8_memory),
        run(float_step, step_inputs | rounded_memory),
    )
    assert_close_in_float32(actual["y"], expected["y"])
    for name in memory:  # the operator writes the last key over itself
        np.testing.assert_array_equal(actual[f"{name}_next"], int8_memory[name])

    tokens = {"x": rng.normal(size=(batch, 2, rows)).astype(np.float32)}
    prefill_inputs = {str(value.name) for value in models[GraphRole.PREFILL].graph.inputs}
    prefill_memory = {name: array for name, array in int8_memory.items() if name in prefill_inputs}
    actual = run(models[GraphRole.PREFILL], tokens | prefill_memory)
    expected = run(float_prefill, tokens | rounded_memory)
    assert_close_in_float32(actual["y"], expected["y"])


def test_an_input_does_not_depend_on_the_others_of_its_batch(
    build: Build, rng: np.random.Generator
) -> None:
    models = graphs(build)
    quantize_cross_attention_memory(models, TYPICAL_SIZES)
    both = encoder_inputs(rng, 2, 7)
    both["keys"][1] *= 1000
    alone = run(models[GraphRole.ENCODER], {name: array[:1] for name, array in both.items()})
    for name, array in run(models[GraphRole.ENCODER], both).items():
        np.testing.assert_array_equal(array[:1], alone[name])


@pytest.mark.parametrize("number", [0.0, 1e-40, 3.0, 1e30])
def test_constant_channels_keep_their_number(build: Build, number: float) -> None:
    models = graphs(build)
    quantize_cross_attention_memory(models, TYPICAL_SIZES)
    memory = np.full((1, 5, 16), number, np.float32)
    int8_memory = run(models[GraphRole.ENCODER], {"keys": memory, "values": -memory})
    for name, sign in (("cross_key_0", 1), ("cross_value_0", -1)):
        scale = int8_memory[f"{name}_scale"].reshape(1, 2, 1, 8)
        restored = int8_memory[name] * scale
        expected = np.full_like(restored, sign * number)
        # a scale is at least the smallest normal number, 1.2e-38
        np.testing.assert_allclose(restored, expected, rtol=float32_error(1.0), atol=1e-38)


@pytest.mark.parametrize(
    "changes",
    [
        {"mask": ", mask"},
        {"heads": 4},
        {"width": 12},
        {"attributes": "<softcap: float = 2.0>"},
        {"value": "cross_key_0"},
        {"rest": "z = Mul (cross_key_0, more)"},
        {"size": "?"},
    ],
    ids=["mask", "shared heads", "heads of 12", "softcap", "key as value", "used twice", "unknown"],
)
def test_other_attention_stays_float(build: Build, changes: dict[str, Any]) -> None:
    if changes.get("size") == "?":
        models = graphs(build)
        for value in models[GraphRole.STEP].graph.inputs:
            if str(value.name).startswith("cross_"):
                value.shape = ir.Shape(["b", 2, None, 8])
    else:
        models = graphs(build, **changes)
    before = {role: operators(model) for role, model in models.items()}
    assert quantize_cross_attention_memory(models, TYPICAL_SIZES) == 0
    assert {role: operators(model) for role, model in models.items()} == before


def test_little_memory_stays_float(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    # two tensors of 2 heads, 7 positions, 8 channels, 4 bytes
    monkeypatch.setattr(int8_cross_attention, "MIN_MEMORY_BYTES", 897)
    assert quantize_cross_attention_memory(graphs(build), TYPICAL_SIZES) == 0
    monkeypatch.setattr(int8_cross_attention, "MIN_MEMORY_BYTES", 896)
    assert quantize_cross_attention_memory(graphs(build), TYPICAL_SIZES) == 1


def test_the_size_of_a_memory_may_be_an_expression(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_cross_attention, "MIN_MEMORY_BYTES", 896)
    models = graphs(build)
    for model in models.values():
        for value in (*model.graph.inputs, *model.graph.outputs):
            if str(value.name).startswith("cross_"):
                value.shape = ir.Shape(["b", 2, "width//4", 8])
    assert quantize_cross_attention_memory(models, {"width": 28}) == 1


def test_each_memory_has_its_own_length(build: Build, rng: np.random.Generator) -> None:
    text = """g (float[b,16] x, float[b,2,m,8] key, float[b,2,m,8] value,
               float[b,2,n,8] other_key, float[b,2,n,8] other_value) => (float[b,16] y) {
        q = Reshape (x, split)
        a = Attention (q, key, value)
        r = Reshape (a, join)
        h = Relu (r)
        s = Reshape (h, split)
        c = Attention (s, other_key, other_value)
        t = Reshape (c, join)
        y = Relu (t)
    }"""
    step = build(text, {"split": np.array([-1, 2, 1, 8]), "join": np.array([-1, 16])})
    names = {"m": ("key", "value"), "n": ("other_key", "other_value")}
    inputs = ", ".join(
        f"float[b,2,{size},8] {n}_in" for size, tensors in names.items() for n in tensors
    )
    outputs = ", ".join(
        f"float[b,2,{size},8] {n}" for size, tensors in names.items() for n in tensors
    )
    body = "\n".join(f"{n} = Identity ({n}_in)" for tensors in names.values() for n in tensors)
    encoder = build(f"g ({inputs}) => ({outputs}) {{ {body} }}", {})
    floats = {
        f"{n}_in": rng.normal(size=(2, 2, {"m": 9, "n": 4}[size], 8)).astype(np.float32)
        for size, tensors in names.items() for n in tensors
    }  # fmt: skip
    x = {"x": rng.normal(size=(2, 16)).astype(np.float32)}
    rounded_memory = {name.removesuffix("_in"): rounded(array) for name, array in floats.items()}
    expected = run(step, x | rounded_memory)
    assert (
        quantize_cross_attention_memory({GraphRole.ENCODER: encoder, GraphRole.STEP: step}, {}) == 2
    )
    actual = run(cleaned(step), x | run(encoder, floats))
    assert_close_in_float32(actual["y"], expected["y"])

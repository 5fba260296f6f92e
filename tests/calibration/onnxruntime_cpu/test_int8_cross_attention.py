"""Keys and values of the memory in 8 bits: quantized by the encoder, read by every step."""

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
USUAL: dict[str, Any] = {
    "heads": 2, "key_heads": 2, "width": 8, "size": "m", "attributes": "", "mask": "",
    "value": "cross_value_0", "rest": "",
}  # fmt: skip
TYPICAL = {"m": 7}


@pytest.fixture(autouse=True)
def _small_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_cross_attention, "MIN_MEMORY_BYTES", 1)
    monkeypatch.setattr(int8_cross_attention, "MIN_HEAD_WIDTH", 8)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def graphs(build: Build, **changes: Any) -> Graphs:
    form = USUAL | changes
    heads, key_heads, width = form["heads"], form["key_heads"], form["width"]
    constants = {
        "split_memory": np.array([0, 0, key_heads, width]),
        "split": np.array([-1, heads, 1, width]),
        "join": np.array([-1, heads * width]),
        "split_prompt": np.array([0, 0, heads, width]),
        "join_prompt": np.array([0, 0, heads * width]),
        "more": np.float32(2).reshape(1),
    }
    memory = MEMORY.format(**form)
    result = f"float[b,{heads * width}] y"
    results = f"{result}, float[b,2,n,8] z" if form["rest"] else result
    texts = {GraphRole.ENCODER: ENCODER, GraphRole.STEP: STEP, GraphRole.PREFILL: PREFILL}
    built: Graphs = {}
    for role, template in texts.items():
        text = template.format(
            **form, memory=memory, result=heads * width, results=results, rows=key_heads * width
        )
        words = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
        built[role] = build(text, {name: a for name, a in constants.items() if name in words})
    return built


def encoder_inputs(rng: np.random.Generator, batch: int, length: int, rows: int = 16) -> Arrays:
    """Returns memories whose channels differ in size by far."""
    channels = 10 ** rng.uniform(-2, 2, rows)
    shape = (batch, length, rows)
    return {n: (rng.normal(size=shape) * channels).astype(np.float32) for n in ("keys", "values")}


def rounded(memory: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounds (batch, heads, length, width) to 255 steps per input and channel."""
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
    made = graphs(build, **changes)
    form = USUAL | changes
    rows = form["heads"] * form["width"]
    memory = run(made[GraphRole.ENCODER], encoder_inputs(rng, batch, length, rows))
    x = rng.normal(size=(batch, rows)).astype(np.float32)
    asked = {"x": x, "mask": np.ones((batch, 1, 1, length), bool)}
    float_step, prompt = made[GraphRole.STEP].clone(), made[GraphRole.PREFILL].clone()
    near = {name: rounded(array) for name, array in memory.items()}

    assert quantize_cross_attention_memory(made, TYPICAL) == 1
    step = cleaned(made[GraphRole.STEP])
    assert operators(step)["GroupQueryAttention"] == 1 and not operators(step)["Attention"]
    rng = np.random.default_rng(0)
    short = run(made[GraphRole.ENCODER], encoder_inputs(rng, batch, length, rows))
    assert {name: short[name].dtype for name in memory} == dict.fromkeys(memory, np.dtype(np.int8))
    # float sums in another order; a query is scaled before its product, not after
    found, expected = run(step, asked | short), run(float_step, asked | near)
    assert_close_in_float32(found["y"], expected["y"])
    for name in memory:  # the key that the operator always writes was there already
        np.testing.assert_array_equal(found[f"{name}_next"], short[name])

    tokens = {"x": rng.normal(size=(batch, 2, rows)).astype(np.float32)}
    taken = {str(value.name) for value in made[GraphRole.PREFILL].graph.inputs}
    given = {name: array for name, array in short.items() if name in taken}
    found = run(made[GraphRole.PREFILL], tokens | given)
    expected = run(prompt, tokens | near)
    assert_close_in_float32(found["y"], expected["y"])


def test_an_input_does_not_depend_on_others_of_its_batch(
    build: Build, rng: np.random.Generator
) -> None:
    made = graphs(build)
    quantize_cross_attention_memory(made, TYPICAL)
    both = encoder_inputs(rng, 2, 7)
    both["keys"][1] *= 1000
    alone = run(made[GraphRole.ENCODER], {name: array[:1] for name, array in both.items()})
    for name, array in run(made[GraphRole.ENCODER], both).items():
        np.testing.assert_array_equal(array[:1], alone[name])


@pytest.mark.parametrize("number", [0.0, 1e-40, 3.0, 1e30])
def test_channels_of_one_number_stay_what_they_are(build: Build, number: float) -> None:
    made = graphs(build)
    quantize_cross_attention_memory(made, TYPICAL)
    same = np.full((1, 5, 16), number, np.float32)
    short = run(made[GraphRole.ENCODER], {"keys": same, "values": -same})
    for name, sign in (("cross_key_0", 1), ("cross_value_0", -1)):
        scale = short[f"{name}_scale"].reshape(1, 2, 1, 8)
        restored = short[name] * scale
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
    ids=["mask", "heads share", "heads of 12", "capped", "one for both", "used twice", "unknown"],
)
def test_other_attention_stays_float(build: Build, changes: dict[str, Any]) -> None:
    if changes.get("size") == "?":
        made = graphs(build)
        for value in made[GraphRole.STEP].graph.inputs:
            if str(value.name).startswith("cross_"):
                value.shape = ir.Shape(["b", 2, None, 8])
    else:
        made = graphs(build, **changes)
    before = {role: operators(model) for role, model in made.items()}
    assert quantize_cross_attention_memory(made, TYPICAL) == 0
    assert {role: operators(model) for role, model in made.items()} == before


def test_little_memory_stays_float(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    # two tensors of 2 heads, 7 positions, 8 channels, 4 bytes
    monkeypatch.setattr(int8_cross_attention, "MIN_MEMORY_BYTES", 897)
    assert quantize_cross_attention_memory(graphs(build), TYPICAL) == 0
    monkeypatch.setattr(int8_cross_attention, "MIN_MEMORY_BYTES", 896)
    assert quantize_cross_attention_memory(graphs(build), TYPICAL) == 1


def test_the_size_of_a_memory_may_follow_from_another(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_cross_attention, "MIN_MEMORY_BYTES", 896)
    made = graphs(build)
    for model in made.values():
        for value in (*model.graph.inputs, *model.graph.outputs):
            if str(value.name).startswith("cross_"):
                value.shape = ir.Shape(["b", 2, "width//4", 8])
    assert quantize_cross_attention_memory(made, {"width": 28}) == 1


def test_two_memories_have_lengths_of_their_own(build: Build, rng: np.random.Generator) -> None:
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
    inputs = ", ".join(f"float[b,2,{size},8] {n}_in" for size, of in names.items() for n in of)
    outputs = ", ".join(f"float[b,2,{size},8] {n}" for size, of in names.items() for n in of)
    body = "\n".join(f"{n} = Identity ({n}_in)" for of in names.values() for n in of)
    encoder = build(f"g ({inputs}) => ({outputs}) {{ {body} }}", {})
    floats = {
        f"{n}_in": rng.normal(size=(2, 2, {"m": 9, "n": 4}[size], 8)).astype(np.float32)
        for size, of in names.items() for n in of
    }  # fmt: skip
    x = {"x": rng.normal(size=(2, 16)).astype(np.float32)}
    near = {name.removesuffix("_in"): rounded(array) for name, array in floats.items()}
    expected = run(step, x | near)
    assert (
        quantize_cross_attention_memory({GraphRole.ENCODER: encoder, GraphRole.STEP: step}, {}) == 2
    )
    found = run(cleaned(step), x | run(encoder, floats))
    assert_close_in_float32(found["y"], expected["y"])

"""Self-attention over cached tokens as one operator, compared with the portable form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from hybrid_deploy.calibration.onnxruntime_cpu.self_attention import fuse_self_attention
from tests.closeness import assert_close_in_float32
from tests.fakes.graph_runs import cleaned, operators, run

Build = Callable[..., ir.Model]

CAPACITY = 6
STEP = """g (float[b,{inputs}] x, int64[b] position, int64[b] other_position,
   float[b,{key_heads},6,{width}] self_key_0, float[b,{key_heads},6,{value_width}] self_value_0)
 => (float[b,{result}] y, float[b,{key_heads},6,{width}] self_key_0_next,
     float[b,{key_heads},6,{value_width}] self_value_0_next) {{
    packed = MatMul (x, weight)
    {parts} = Split <axis: int = 1> (packed, sizes)
    q4 = Reshape (q, query_heads)
    k4 = Reshape (k, key_heads)
    v4 = Reshape (v, value_heads)
    {query}
    other = Relu (self_value_0)
    self_key_0_next = TensorScatter <axis: int = -2, mode: string = "{mode}">
      (self_key_0, k4, {written})
    self_value_0_next = TensorScatter <axis: int = -2, mode: string = "linear">
      ({value_cache}, v4, position)
    column = Unsqueeze (position, ax1)
    seen = {seen}
    mask = Reshape <allowzero: int = 1> (seen, mask_shape)
    a = Attention {attributes} (qt, self_key_0_next, self_value_0_next{mask})
    r = Reshape (a, join)
    {rest}
}}"""
DEFAULTS: dict[str, Any] = {
    "heads": 2, "key_heads": 2, "width": 8, "value_width": 8, "attributes": "", "mode": "linear",
    "query": "qt = Reshape (q4, same)", "parts": "q, k, v", "rows": -1, "written": "position",
    "seen": "LessOrEqual (keys, column)", "mask": ", mask", "rest": "y = Relu (r)",
    "value_cache": "self_value_0",
}  # fmt: skip


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def step(build: Build, rng: np.random.Generator, **changes: Any) -> ir.Model:
    settings = DEFAULTS | changes
    heads, key_heads, width = settings["heads"], settings["key_heads"], settings["width"]
    sizes = {"q": heads * width, "k": key_heads * width, "v": key_heads * settings["value_width"]}
    order = [sizes.get(part, 4) for part in settings["parts"].split(", ")]
    constants: dict[str, NDArray[Any]] = {
        "weight": rng.normal(size=(sum(order), sum(order))).astype(np.float32) / 2,
        "sizes": np.array(order),
        "query_heads": np.array([-1, heads, 1, width]),
        "key_heads": np.array([settings["rows"], key_heads, 1, width]),
        "value_heads": np.array([-1, key_heads, 1, settings["value_width"]]),
        "same": np.array([-1, heads, 1, width]),
        "ax1": np.array([1]),
        "keys": np.arange(CAPACITY),
        "later_keys": np.arange(CAPACITY) + 1,
        "mask_shape": np.array([-1, 1, 1, CAPACITY]),
        "join": np.array([-1, heads * settings["value_width"]]),
        "third": np.float32(1 / 3),
    }
    text = STEP.format(**settings, inputs=sum(order), result=heads * settings["value_width"])
    return build(text, {name: array for name, array in constants.items() if name in text})


def inputs(model: ir.Model, rng: np.random.Generator, positions: list[int]) -> dict[str, Any]:
    """Returns one row per position, and caches full of random numbers that no row may attend to."""
    feeds: dict[str, Any] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        sizes = [size for size in value.shape[1:] if isinstance(size, int)]
        if value.dtype is ir.DataType.INT64:
            feeds[str(value.name)] = np.array(positions)
        else:
            shape = (len(positions), *sizes)
            feeds[str(value.name)] = rng.normal(size=shape).astype(np.float32)
    return feeds


@pytest.mark.parametrize(
    "positions", [[0], [5], [0, 0, 0], [0, 3, 5], [4, 1, 0]], ids=lambda p: "-".join(map(str, p))
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"heads": 4},
        {"heads": 4, "key_heads": 1, "width": 16, "value_width": 16},
        {"attributes": "<scale: float = 0.7>"},
        {"width": 24, "value_width": 24},
    ],
    ids=["plain", "two heads a key", "one key for all", "scale", "wide heads"],
)
def test_attention_over_cached_tokens_is_one_operator(
    build: Build, rng: np.random.Generator, changes: dict[str, Any], positions: list[int]
) -> None:
    model = step(build, rng, **changes)
    feeds = inputs(model, rng, positions)
    expected = run(model, feeds)
    assert fuse_self_attention(model) == 1
    counts = operators(cleaned(model))
    assert counts["GroupQueryAttention"] == 1
    assert not counts.keys() & {"Attention", "TensorScatter", "LessOrEqual", "Split"}
    actual = run(model, feeds)
    assert list(actual) == list(expected)
    assert_close_in_float32(actual["y"], expected["y"])
    for name in ("self_key_0_next", "self_value_0_next"):  # one row written, the others unchanged
        np.testing.assert_array_equal(actual[name], expected[name])


@pytest.mark.parametrize(
    "changes",
    [
        {"seen": "Less (keys, column)"},
        {"seen": "LessOrEqual (later_keys, column)"},
        {"seen": "LessOrEqual (column, keys)"},
        {"seen": "GreaterOrEqual (keys, column)"},
        {"mask": ""},
        {"attributes": "<softcap: float = 2.0>"},
        {"attributes": "<is_causal: int = 1>"},
        {"written": "other_position"},
        {"mode": "circular"},
        {"parts": "k, q, v"},
        {"parts": "q, k, v, more"},
        {"value_width": 16},
        {"value_cache": "other"},
        {"width": 12, "value_width": 12},
        {"query": "qt = Mul (q4, third)"},
        {"rows": 1},
        {"rest": "y = Relu (r)  z = ReduceMax (a)"},
        {"rest": "y = Relu (r)  z = ReduceMax (self_key_0_next)"},
    ],
    ids=[
        "mask without itself", "mask one further", "mask of what comes", "mask of the other side",
        "no mask", "capped scores", "causal", "written elsewhere", "a ring of keys",
        "another order", "a fourth part", "wider values", "a computed cache", "heads of 12",
        "query multiplied",
        "one batch size", "result used twice", "cache used twice",
    ],
)  # fmt: skip
def test_other_attention_is_left_alone(
    build: Build, rng: np.random.Generator, changes: dict[str, Any]
) -> None:
    model = step(build, rng, **changes)
    before = operators(model)
    assert fuse_self_attention(model) == 0
    assert operators(model) == before


def test_a_graph_without_positions_is_left_alone(build: Build) -> None:
    model = build("g (float[b,4] x) => (float[b,4] y) { y = Relu (x) }", {})
    assert fuse_self_attention(model) == 0

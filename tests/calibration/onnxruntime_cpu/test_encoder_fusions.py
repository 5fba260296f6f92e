"""Encoder operators for ONNX Runtime's CPU: equal numbers from other operators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from hybrid_deploy.calibration.onnxruntime_cpu.encoder_fusions import fuse_encoder_operators
from tests.calibration.rewrite.test_encoder import optimized
from tests.closeness import assert_close_in_float32

Build = Callable[..., ir.Model]
Arrays = dict[str, NDArray[np.float32]]

# Reshape and Transpose split the heads, attention, Transpose and Reshape join them
ATTENTION = """g (float[b,5,32] x, float[b,7,{width}] other) => (float[b,5,32] y) {{
    {query}
    q4 = Reshape <allowzero: int = 0> (q, split)
    k4 = Reshape <allowzero: int = 0> (other, {keys})
    v4 = Reshape <allowzero: int = 0> (other, {keys})
    qt = Transpose <perm: ints = [0,2,1,3]> (q4)
    kt = Transpose <perm: ints = [0,2,1,3]> (k4)
    vt = Transpose <perm: ints = [0,2,1,3]> (v4)
    a = Attention {attributes} (qt, kt, vt{mask})
    at = Transpose <perm: ints = [0,2,1,3]> (a)
    {joined} = Reshape <allowzero: int = 0> (at, join)
    {rest}
}}"""
CONSTANTS: dict[str, NDArray[np.generic]] = {
    "split": np.array([0, 0, 4, 8]),
    "split_two": np.array([0, 0, 2, 8]),
    "join": np.array([0, 0, 32]),
    "third": np.float32(1 / 3),
    "one": np.ones(32, np.float32),
    "bias": np.zeros((5, 7), np.float32),
}
RESIDUAL = """g (float[b,3,16] x, float[b,3,16] other) => ({outputs}) {{
    s = Add (x, other)
    n = LayerNormalization <axis: int = -1> (s, gain, shift)
    {rest}
}}"""


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def attention(
    build: Build, query: str = "q = Identity (x)", attributes: str = "", mask: str = "",
    joined: str = "j", rest: str = "y = Mul (j, one)", key_heads: int = 4,
) -> ir.Model:  # fmt: skip
    text = ATTENTION.format(
        query=query, attributes=attributes, mask=mask, joined=joined, rest=rest,
        width=8 * key_heads, keys="split" if key_heads == 4 else "split_two",
    )  # fmt: skip
    return build(text, {name: array for name, array in CONSTANTS.items() if name in text})


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, inputs: Arrays, folder: Path) -> NDArray[np.float32]:
    return np.asarray(optimized(model, folder)[0].run(None, inputs)[0])


def inputs_of(rng: np.random.Generator, key_heads: int = 4) -> Arrays:
    shapes = {"x": (2, 5, 32), "other": (2, 7, 8 * key_heads)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("query", "attributes", "other_operators", "scale"),
    [
        # without an attribute, the scale of both operators is 1 / sqrt(head width)
        ("q = Identity (x)", "", ["Identity"], None),
        ("q = Identity (x)", "<scale: float = 0.7>", ["Identity"], 0.7),
        ("q = Mul (x, third)", "<scale: float = 0.9>", [], 0.3),
        ("q = Mul (third, x)", "<scale: float = 0.9>", [], 0.3),
        # one number per channel: it stays a product
        ("q = Mul (x, one)", "<scale: float = 0.9>", ["Mul"], 0.9),
    ],
)
def test_attention_with_split_and_join_is_one_operator(
    build: Build, rng: np.random.Generator, tmp_path: Path,
    query: str, attributes: str, other_operators: list[str], scale: float | None,
) -> None:  # fmt: skip
    model, inputs = attention(build, query, attributes), inputs_of(rng)
    expected = run(model, inputs, tmp_path)
    fuse_encoder_operators(model)
    assert operators(model) == [*other_operators, "MultiHeadAttention", "Mul"]
    node = next(node for node in model.graph if node.op_type == "MultiHeadAttention")
    assert node.attributes.get_int("num_heads") == 4
    assert node.attributes.get_float("scale") == (scale and pytest.approx(scale))
    actual = run(model, inputs, tmp_path)
    # equal float32 sums in another order
    assert_close_in_float32(actual, expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"mask": ", bias"},
        {"attributes": "<is_causal: int = 1>"},
        {"attributes": "<softcap: float = 2.0>"},
        {"key_heads": 2},
        {"joined": "y", "rest": ""},
        {"rest": "largest = ReduceMax <keepdims: int = 0> (at)  y = Add (j, largest)"},
    ],
    ids=["mask", "causal", "capped", "unequal heads", "output of the graph", "heads used twice"],
)
def test_other_attention_is_left_alone(
    build: Build, rng: np.random.Generator, changes: dict[str, Any]
) -> None:
    model = attention(build, **changes)
    before = operators(model)
    fuse_encoder_operators(model)
    assert operators(model) == before


def residual(build: Build, outputs: str, rest: str) -> ir.Model:
    text = RESIDUAL.format(outputs=outputs, rest=rest)
    gain = np.linspace(0.5, 2, 16, dtype=np.float32)
    return build(text, {"gain": gain, "shift": gain - 1})


def test_an_add_before_a_normalization_is_a_sum(
    build: Build, rng: np.random.Generator, tmp_path: Path
) -> None:
    model = residual(build, "float[b,3,16] y", "y = Relu (n)")
    inputs = {name: rng.normal(size=(2, 3, 16)).astype(np.float32) for name in ("x", "other")}
    session, fused = optimized(model, tmp_path)
    expected = session.run(None, inputs)[0]
    fuse_encoder_operators(model)
    assert operators(model) == ["Sum", "LayerNormalization", "Relu"]
    session, unfused = optimized(model, tmp_path)
    assert fused["SkipLayerNormalization"] == 1, "ONNX Runtime fuses the original"
    assert unfused["SkipLayerNormalization"] == 0
    # separate operators: float32 sums in another order
    assert_close_in_float32(np.asarray(session.run(None, inputs)[0]), expected)


@pytest.mark.parametrize(
    ("outputs", "rest"),
    [
        ("float[b,3,16] y", "y = Mul (n, s)"),
        ("float[b,3,16] y, float[b,3,16] s", "y = Relu (n)"),
    ],
    ids=["used twice", "output of the graph"],
)
def test_an_add_with_another_use_is_left_alone(build: Build, outputs: str, rest: str) -> None:
    model = residual(build, outputs, rest)
    fuse_encoder_operators(model)
    assert operators(model)[:2] == ["Add", "LayerNormalization"]

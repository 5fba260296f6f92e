"""Products of one activation as one product: equal numbers from fewer operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from hybrid_deploy.calibration.onnxruntime_cpu.qkv_fusion import fuse_qkv
from tests.closeness import assert_close_in_float32
from tests.fakes.graph_runs import cleaned, operators, run

Build = Callable[..., ir.Model]

HEAD = "g (float[b,64] x, float[b,64] other) => (float[b,{first}] y, float[b,6] z)"
PRODUCTS = "p = MatMul (x, w4)  q = MatMul (x, w6)  y = Relu (p)  z = Relu (q)"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def constants(rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
    def floats(*shape: int) -> NDArray[np.float32]:
        return rng.normal(size=shape).astype(np.float32)

    def bytes_(*shape: int) -> NDArray[np.int8]:
        return rng.integers(-127, 128, shape).astype(np.int8)

    return {
        "w4": floats(64, 4), "w6": floats(64, 6), "b4": floats(4), "b6": floats(6),
        "half": np.float32(0.5), "third": np.full(1, -1 / 3, np.float32),
        "row": floats(1, 4), "spread": np.full((1, 1, 1), 2, np.float32), "wide": floats(2, 64, 6),
        "q4": bytes_(64, 4), "q6": bytes_(64, 6),
        "column4": abs(floats(4)), "column6": abs(floats(6)),
        "blocks4": abs(floats(2, 4)), "blocks6": abs(floats(2, 6)), "finer6": abs(floats(4, 6)),
        "input6": abs(floats(64)), "whole4": np.float32(0.1), "whole6": np.float32(0.2),
        "zero4": np.zeros(4, np.int8), "zero6": np.zeros(6, np.int8),
    }  # fmt: skip


def built(build: Build, rng: np.random.Generator, body: str, head: str = HEAD) -> ir.Model:
    text = f"{head.format(first=4)} {{ {body} }}"
    words = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
    input_names = {name for name in words if f"{name} =" not in text}
    return build(
        text, {name: array for name, array in constants(rng).items() if name in input_names}
    )


def inputs(rng: np.random.Generator, rows: int) -> dict[str, NDArray[np.float32]]:
    return {name: rng.normal(size=(rows, 64)).astype(np.float32) for name in ("x", "other")}


def dequantized(name: str, scale: str, rest: str = "axis: int = 1", zero: str = "") -> str:
    return f"w{name} = DequantizeLinear <{rest}> (q{name}, {scale}{zero})  "


BLOCKS = "axis: int = 0, block_size: int = 32"
PER_COLUMN = dequantized("4", "column4") + dequantized("6", "column6")
IN_BLOCKS = dequantized("4", "blocks4", BLOCKS) + dequantized("6", "blocks6", BLOCKS)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "body",
    [
        PRODUCTS,
        "p = MatMul (x, w4)  a = Add (p, b4)  q = MatMul (x, w6)  y = Relu (a)  z = Relu (q)",
        "p = MatMul (x, w4)  a = Add (b4, p)  s = Mul (a, half)  q = MatMul (x, w6)"
        "  t = Mul (third, q)  y = Relu (s)  z = Relu (t)",
        PER_COLUMN + PRODUCTS,
        IN_BLOCKS + "p = MatMul (x, w4)  s = Mul (p, third)  q = MatMul (x, w6)"
        "  c = Add (q, b6)  y = Relu (s)  z = Relu (c)",
    ],
    ids=["float", "one bias", "factors", "a scale per column", "scales per block"],
)
def test_products_of_one_activation_are_one(
    build: Build, rng: np.random.Generator, body: str, rows: int
) -> None:
    model, feeds = built(build, rng, body), inputs(rng, rows)
    expected = run(model, feeds)
    assert fuse_qkv(model) == 1
    counts = operators(cleaned(model))
    assert counts["MatMul"] == counts["Split"] == 1
    assert counts["Mul"] == 0 and counts["Add"] == ("Add" in body)
    assert counts["DequantizeLinear"] == ("DequantizeLinear" in body)
    actual = run(model, feeds)
    for name, values in expected.items():  # equal sums in another order
        assert_close_in_float32(actual[name], values)
    assert all(actual[name].any() for name in actual)


@pytest.mark.parametrize(
    "body",
    [
        "p = MatMul (x, w4)  q = MatMul (other, w6)  y = Relu (p)  z = Relu (q)",
        PER_COLUMN.partition("w6")[0] + PRODUCTS,
        dequantized("4", "blocks4", BLOCKS)
        + dequantized("6", "finer6", "axis: int = 0, block_size: int = 16") + PRODUCTS,
        dequantized("4", "blocks4", BLOCKS) + dequantized("6", "column6") + PRODUCTS,
        dequantized("4", "whole4") + dequantized("6", "whole6") + PRODUCTS,
        dequantized("4", "column4", zero=", zero4")
        + dequantized("6", "column6", zero=", zero6") + PRODUCTS,
        "p = MatMul (x, w4)  q = MatMul (x, w6)  o = MatMul (other, w6)  s = Add (q, o)"
        "  y = Relu (p)  z = Relu (s)",
        "y = MatMul (x, w4)  q = MatMul (x, w6)  z = Relu (q)",
    ],
    ids=[
        "two activations", "one of them float", "other blocks", "blocks and columns",
        "one scale for all", "zero points", "a shared weight", "output of the graph",
    ],
)  # fmt: skip
def test_other_products_are_left_alone(build: Build, rng: np.random.Generator, body: str) -> None:
    model = built(build, rng, body)
    before = operators(model)
    assert fuse_qkv(model) == 0
    assert operators(model) == before


def test_weights_with_row_scales_are_left_alone(build: Build, rng: np.random.Generator) -> None:
    rows = "axis: int = 0"
    body = dequantized("6", "input6", rows) + "v6 = DequantizeLinear <axis: int = 0> (q6, input6)"
    body += "  p = MatMul (x, w6)  q = MatMul (x, v6)  y = Relu (p)  z = Relu (q)"
    model = built(build, rng, body, HEAD.replace("{first}", "6"))
    assert fuse_qkv(model) == 0


@pytest.mark.parametrize(
    ("rest", "left"),
    [
        # the operand is no row, no single number, or the product itself
        ("a = Add (p, row)  y = Relu (a)", "Add"),
        ("a = Add (p, p)  y = Relu (a)", "Add"),
        ("a = Mul (p, b4)  y = Relu (a)", "Mul"),
    ],
)
def test_other_additions_and_products_are_not_fused(
    build: Build, rng: np.random.Generator, rest: str, left: str
) -> None:
    body = f"p = MatMul (x, w4)  {rest}  q = MatMul (x, w6)  z = Relu (q)"
    model, feeds = built(build, rng, body), inputs(rng, 2)
    expected = run(model, feeds)
    assert fuse_qkv(model) == 1
    assert operators(cleaned(model))[left] == 1
    actual = run(model, feeds)
    assert_close_in_float32(actual["y"], expected["y"])


def test_a_factor_that_adds_dimensions_is_not_fused(build: Build, rng: np.random.Generator) -> None:
    head = "g (float[b,64] x, float[b,64] other) => (float[1,b,4] y, float[b,6] z)"
    body = "p = MatMul (x, w4)  s = Mul (p, spread)  q = MatMul (x, w6)  y = Relu (s)  z = Relu (q)"
    model, feeds = built(build, rng, body, head), inputs(rng, 2)
    expected = run(model, feeds)
    assert fuse_qkv(model) == 1
    actual = run(cleaned(model), feeds)
    assert_close_in_float32(actual["y"], expected["y"])


def test_a_product_behind_another_is_fused_too(build: Build, rng: np.random.Generator) -> None:
    head = "g (float[b,64] x, float[b,64] other) => (float[b,4] y, float[b,6] z)"
    body = (
        "h = MatMul (x, in0)  k = MatMul (x, in1)  p = MatMul (h, w4)  q = MatMul (h, w6)"
        "  r = MatMul (k, v4)  s = Add (p, r)  y = Relu (s)  z = Relu (q)"
    )
    square = {f"in{i}": rng.normal(size=(64, 64)).astype(np.float32) / 8 for i in range(2)}
    model = build(
        f"{head} {{ {body} }}",
        square | {n: a for n, a in constants(rng).items() if n in ("w4", "w6")}
        | {"v4": rng.normal(size=(64, 4)).astype(np.float32)},
    )  # fmt: skip
    feeds = inputs(rng, 2)
    expected = run(model, feeds)
    assert fuse_qkv(model) == 2
    actual = run(cleaned(model), feeds)
    for name, values in expected.items():  # sums of 64 x 64 products
        assert_close_in_float32(actual[name], values)


def test_half_precision_is_left_alone(build: Build) -> None:
    halves = {name: np.ones((4, 4), np.float16) for name in ("u", "v")}
    head = "g (float16[b,4] x) => (float16[b,4] y, float16[b,4] z)"
    model = build(
        f"{head} {{ p = MatMul (x, u)  q = MatMul (x, v)  y = Relu (p)  z = Relu (q) }}", halves
    )
    assert fuse_qkv(model) == 0

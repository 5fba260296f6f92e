"""A residual sum and its normalization as one operator, compared with the two operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from hybrid_deploy.calibration.onnxruntime_cpu.skip_layer_norm import fuse_skip_layer_norm
from tests.closeness import assert_close_in_float32
from tests.fakes.graph_runs import cleaned, operators, run

Build = Callable[..., ir.Model]

HEAD = "g (float[b,8] x, float[b,8] other) => (float[b,8] y)"
POST_NORM = "s = Add (x, other)  n = LayerNormalization <epsilon: float = 0.1> (s, w, c)"


def built(build: Build, body: str, head: str = HEAD) -> ir.Model:
    rng = np.random.default_rng(0)
    values = {
        "w": rng.normal(size=8).astype(np.float32),
        "c": rng.normal(size=8).astype(np.float32),
        "row": rng.normal(size=(1, 8)).astype(np.float32),
    }
    initializers = {name: array for name, array in values.items() if f" {name}" in body}
    return build(f"{head} {{ {body} }}", initializers)


def inputs(rows: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=(rows, 8)).astype(np.float32) for name in ("x", "other")}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "body",
    [
        POST_NORM + " y = Relu (n)",
        POST_NORM + " y = Add (n, s)",
        POST_NORM + " z = LayerNormalization (s, w)  y = Mul (n, z)",
        "s = Add (x, other)  y = LayerNormalization <axis: int = 1> (s, w)",
    ],
    ids=["after the sum", "the sum goes on", "two norms of one sum", "output of the graph"],
)
def test_a_sum_and_its_norm_are_one(build: Build, body: str, rows: int) -> None:
    model, feeds = built(build, body), inputs(rows)
    expected = run(model, feeds)
    norms = operators(model)["LayerNormalization"]
    assert fuse_skip_layer_norm(model) == norms
    counts = operators(cleaned(model))
    assert counts["SkipLayerNormalization"] == norms and not counts["LayerNormalization"]
    assert counts["Add"] == ("y = Add" in body)
    actual = run(model, feeds)
    assert list(actual) == ["y"]
    assert_close_in_float32(actual["y"], expected["y"])


@pytest.mark.parametrize(
    ("body", "head"),
    [
        ("s = Add (x, row)  y = LayerNormalization (s, w)", HEAD),
        ("y = LayerNormalization (x, w)", HEAD),
        ("s = Add (x, other)  y = LayerNormalization <axis: int = 0> (s, x)", HEAD),
        ("s = Add (x, other)  n = LayerNormalization (s, w)  y = Relu (n)",
         HEAD.replace("=> (", "=> (float[b,8] s, ")),
        ("u = Unsqueeze (x, one)  v = Unsqueeze (other, one)  s = Add (u, v)"
         "  n = LayerNormalization (s, w)  y = Squeeze (n, one)", HEAD),
    ],
    ids=["one row for all", "no sum", "over the batch", "the sum is returned", "with a length"],
)  # fmt: skip
def test_other_norms_are_left_alone(build: Build, body: str, head: str) -> None:
    text = body.replace("one)", "axis)")
    constants = "axis = Constant <value_ints = [1]> ()  " if "axis)" in text else ""
    model = built(build, constants + text, head)
    before = operators(model)
    assert fuse_skip_layer_norm(model) == 0
    assert operators(model) == before

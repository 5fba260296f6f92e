"""Columns of a matrix, found behind reshapes, transpositions and selections."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from hybrid_deploy.calibration.graphs.row_slices import flattened_rows, is_in_order, row_slice

Build = Callable[..., ir.Model]

CONSTANTS: dict[str, NDArray[np.int64]] = {
    "zero": np.array(0),
    "one": np.array(1),
    "two": np.array(2),
    "ax1": np.array([1]),
    "ax2": np.array([2]),
    "swap": np.array([1, 0]),
    "sizes": np.array([4, 12, 8]),
    "three": np.array([-1, 3, 2, 4]),
    "first": np.array([1, -1, 3, 8]),
    "joined": np.array([3, -1, 8]),
    "heads": np.array([-1, 2, 4]),
    "kept": np.array([0, 2, 12]),
    "halves": np.array([-1, 12]),
    "fixed": np.array([1, 24]),
    "flat": np.array([-1, 8]),
}


def value(model: ir.Model, name: str) -> ir.Value:
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    return next(v for v in values if v.name == name)


def built(build: Build, head: str, body: str) -> ir.Model:
    text = f"{head} {{ {body} }}"
    names = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
    return build(text, {name: array for name, array in CONSTANTS.items() if name in names})


@pytest.mark.parametrize(
    ("shape", "body", "begin", "width"),
    [
        ("[b,8]", "a, y, c = Split <axis: int = 1, num_outputs: int = 3> (x)", 8, 8),
        ("[b,12]", "a, y, c = Split <axis: int = -1> (x, sizes)", 4, 12),
        ("[b,2,4]", "r = Reshape (x, three)  y = Gather <axis: int = 1> (r, two)", 16, 8),
        (
            "[b,2,1,4]",
            "r = Reshape (x, three)  g = Gather <axis: int = 1> (r, one)  y = Unsqueeze (g, ax2)",
            8, 8,
        ),
        (  # as torch.nn.MultiheadAttention splits its packed projection
            "[b,2,4]",
            "r = Reshape (x, first)  t = Transpose <perm: ints = [2,1,0,3]> (r)"
            "  j = Reshape (t, joined)  g = Gather <axis: int = 0> (j, zero)"
            "  y = Reshape (g, heads)",
            0, 8,
        ),
        ("[b,2,12]", "y = Reshape (x, kept)", 0, 24),
        ("[b,24]", "u = Unsqueeze (x, ax1)  y = Squeeze (u, ax1)", 0, 24),
    ],
)  # fmt: skip
def test_columns_are_found_behind_moving_operators(
    build: Build, shape: str, body: str, begin: int, width: int
) -> None:
    model = built(build, f"g (float[b,24] x) => (float{shape} y)", body)
    columns = row_slice(value(model, "y"))
    assert columns is not None and columns.source is value(model, "x")
    assert (columns.begin, columns.width) == (begin, width)


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        ("[b,2,3,4]", "r = Reshape (x, three)  y = Transpose <perm: ints = [0,2,1,3]> (r)"),
        ("[b,2,2,4]", "r = Reshape (x, three)  y = Gather <axis: int = 1> (r, swap)"),
        ("[n,12]", "y = Reshape (x, halves)"),
        ("[1,24]", "y = Reshape (x, fixed)"),
        ("[24,b]", "y = Transpose <perm: ints = [1,0]> (x)"),
        ("[b,n]", "y = Gather <axis: int = 1> (x, chosen)"),
    ],
    ids=["heads mixed", "another order", "rows cut", "one batch size", "columns first", "an input"],
)
def test_reordered_or_cut_rows_are_no_columns(build: Build, shape: str, body: str) -> None:
    head = f"g (float[b,24] x, int64[n] chosen) => (float{shape} y)"
    assert row_slice(value(built(build, head, body), "y")) is None


def test_a_computed_tensor_is_the_source(build: Build) -> None:
    body = "s = Add (x, x)  a, y, c = Split <axis: int = 1> (s, sizes)"
    model = built(build, "g (float[b,24] x) => (float[b,12] y)", body)
    columns = row_slice(value(model, "y"))
    assert columns is not None and columns.source is value(model, "s")


@pytest.mark.parametrize("shape", ["[2,24]", "[b,n]", "[b,2,12]"])
def test_only_a_matrix_with_a_row_for_each_sequence_has_columns(build: Build, shape: str) -> None:
    model = built(build, f"g (float{shape} x) => (float{shape} y)", "y = Relu (x)")
    assert row_slice(value(model, "x")) is None


ROWS = "g (float[b,2,1,4] x) => (float[b,8] y)"


def test_flattened_rows_are_found(build: Build) -> None:
    body = "s = Squeeze (x, ax2)  r = Reshape (s, flat)  y = Relu (r)"
    model = built(build, ROWS, body)
    assert flattened_rows(value(model, "x")) is value(model, "r")


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (ROWS, "t = Transpose <perm: ints = [0,3,2,1]> (x)  r = Reshape (t, flat)  y = Relu (r)"),
        (ROWS, "n = Relu (x)  s = Squeeze (n, ax2)  y = Reshape (s, flat)"),
        (ROWS, "y = Reshape (x, flat)"),
        (
            "g (float[b,2,1,4] x) => (float[b,8] y, float[b,2,1,4] z)",
            "r = Reshape (x, flat)  y = Relu (r)  z = Relu (x)",
        ),
    ],
    ids=["another order", "computed first", "output of the graph", "used twice"],
)
def test_reordered_computed_or_shared_rows_are_not_found(
    build: Build, head: str, body: str
) -> None:
    assert flattened_rows(value(built(build, head, body), "x")) is None


@pytest.mark.parametrize(
    ("shape", "body", "in_order"),
    [
        ("[b,1]", "y = Unsqueeze (x, ax1)", True),
        ("[2]", "y = Gather <axis: int = 0> (x, swap)", False),
        ("[1]", "y = Gather <axis: int = 0> (x, ax1)", False),
    ],
)
def test_is_in_order(build: Build, shape: str, body: str, in_order: bool) -> None:
    model = built(build, f"g (int64[b] x) => (int64{shape} y)", body)
    assert is_in_order(value(model, "y"), value(model, "x")) is in_order

"""The vocabulary projection in two stages: the error bound, and the refine graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from hybrid_deploy.calibration.onnxruntime_cpu import two_stage_projection as projection_pass
from hybrid_deploy.calibration.onnxruntime_cpu.two_stage_projection import two_stage_projection
from hybrid_deploy.calibration.qdq.vocabulary_projection import MIN_VOCABULARY
from hybrid_deploy.contract import CANDIDATES, ERROR_BOUND, HIDDEN, LOGITS, GraphRole
from tests.closeness import assert_close_in_float32, float32_error, largest
from tests.fakes.graph_runs import operators, run

Build = Callable[..., ir.Model]
Floats = NDArray[np.float32]
Graphs = dict[GraphRole, ir.Model]

MATMUL = "{logits} = MatMul (h, columns)"
FORMS = {
    "MatMul": MATMUL.format(logits="logits"),
    "MatMul and Add": f"{MATMUL.format(logits='m')}  logits = Add (m, bias)",
    "Add and MatMul": f"{MATMUL.format(logits='m')}  logits = Add (bias, m)",
    "Gemm": "logits = Gemm (h, columns, bias)",
    "tied Gemm": "logits = Gemm <transB: int = 1> (h, table)",
    "tied Gemm with bias": "logits = Gemm <transB: int = 1> (h, table, bias)",
}


@pytest.fixture(autouse=True)
def _without_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection_pass, "MIN_VOCABULARY", 1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def graph(
    build: Build, table: Floats, projection: str, bias: Floats | None = None, head: str = ""
) -> ir.Model:
    words, width = table.shape
    text = f"""g (int64[b] token, float[b,{width}] x) => (float[b,{words}] logits{head}) {{
        embedded = Gather <axis: int = 0> (table, token)
        nothing = Sub (embedded, embedded)
        h = Add (x, nothing)
        {projection}
    }}"""
    constants = {"table": table, "columns": np.ascontiguousarray(table.T), "bias": bias,
                 "transposed": np.ones((words, width), np.float32)}  # fmt: skip
    initializers = {n: a for n, a in constants.items() if a is not None and f"{n}" in text}
    return build(text, initializers)


def both(
    build: Build, table: Floats, projection: str, bias: Floats | None = None, head: str = ""
) -> Graphs:
    roles = (GraphRole.PREFILL, GraphRole.STEP)
    return {role: graph(build, table, projection, bias, head) for role in roles}


def project(
    build: Build, table: Floats, rows: Floats, form: str = "MatMul", bias: Floats | None = None
) -> tuple[Floats, Floats, Floats, ir.Model]:
    """Returns approximate and exact logits, the error bound of each row, and the refine graph."""
    graphs = both(build, table, FORMS[form], bias)
    feeds: dict[str, NDArray[Any]] = {"token": np.zeros(len(rows), np.int64), "x": rows}
    exact = run(graphs[GraphRole.STEP], feeds)[LOGITS]
    refine_graph = two_stage_projection(graphs)
    assert refine_graph is not None
    for model in graphs.values():
        assert operators(model)["DynamicQuantizeMatMul"] == 1
        assert not operators(model).keys() & {"MatMul", "Gemm"}
    outputs = run(graphs[GraphRole.STEP], feeds)
    assert list(outputs) == [LOGITS, HIDDEN, ERROR_BOUND]
    np.testing.assert_array_equal(outputs[HIDDEN], rows)
    return outputs[LOGITS], exact, outputs[ERROR_BOUND], refine_graph


def error_share(approximate: Floats, exact: Floats, error_bound: Floats) -> NDArray[np.float64]:
    """Returns the largest error of each row as a share of its error bound."""
    distance = np.abs(approximate.astype(np.float64) - exact.astype(np.float64)).max(1)
    return np.asarray(distance / error_bound)


def rows_of_all_kinds(rng: np.random.Generator, table: Floats) -> list[Floats]:
    width = table.shape[1]
    normal = rng.normal(size=(4, width))
    huge = normal.copy()
    huge[:, 3] = 1000
    kinds = [
        normal, 1e-4 * normal, 1e4 * normal, huge, -np.abs(normal), np.abs(normal) + 5,
        np.full((1, width), 0.7), np.full((1, width), -3.0), np.zeros((1, width)),
        np.eye(width)[:2], np.sign(normal), table[:3], np.exp(3 * normal),
    ]  # fmt: skip
    return [kind.astype(np.float32) for kind in kinds]


@pytest.mark.parametrize("width", [8, 96, 1000])
def test_the_error_bound_holds(build: Build, rng: np.random.Generator, width: int) -> None:
    table = rng.normal(size=(300, width)).astype(np.float32)
    table[7], table[8], table[9] = 0, 100 * table[8], 1e-39
    table[10, 3] = 1e4
    shares = []
    for rows in rows_of_all_kinds(rng, table):
        approximate, exact, error_bound, _ = project(build, table, rows)
        assert (np.abs(approximate - exact) <= error_bound[:, None]).all()
        for row in range(min(len(rows), 2)):  # a single row is quantized with its own range
            single = project(build, table, rows[row : row + 1])
            assert (np.abs(single[0] - single[1]) <= single[2][:, None]).all()
            if error_bound[row] > 0:
                shares.append(error_share(*single[:3]))
    assert 0.02 < np.concatenate(shares).max() <= 1, "the bound is not far too large"


def worst_rows(rng: np.random.Generator, words: int, width: int) -> tuple[Floats, Floats]:
    """Returns a table that 7 bits hold exactly, and rows half a step from 8-bit numbers.

    All numbers of a row are rounded in the same direction and all weights have the same magnitude,
    so the errors add up: the approximate logits have the largest possible error.
    """
    table = np.where(np.arange(words)[:, None] % 2, -1, 1) * np.ones((words, width))
    steps = rng.integers(100, 255, (8, width)) + 0.5
    steps[:, 0] = 254.5  # the largest; from the smallest, -0.5, the range is 255 steps
    steps[:, 1] = -0.5
    return table.astype(np.float32), steps


@pytest.mark.parametrize("scale", [1.0, 1 / 3, 1e-3, 7.7])
def test_the_error_bound_holds_where_it_is_reached(
    build: Build, rng: np.random.Generator, scale: float
) -> None:
    table, steps = worst_rows(rng, 64, 2048)
    nudged = scale * (steps - 3e-5)  # no quotient is just above the middle of a step
    shares = []
    for row in nudged.astype(np.float32):
        approximate, exact, error_bound, _ = project(build, table, row[None])
        shares.append(error_share(approximate, exact, error_bound))
    assert 0.95 < np.concatenate(shares).max() <= 1


def test_the_error_bound_covers_the_rounding_of_weights(
    build: Build, rng: np.random.Generator
) -> None:
    # one large weight makes steps so large that all others round to 0; the rows equal the errors
    table = rng.uniform(0.2, 0.49, (32, 512)).astype(np.float32)
    table[:, 0] = 64
    rows = table.copy()
    rows[:, 0] = 0
    shares = [error_share(*project(build, table, row[None])[:3]) for row in rows]
    assert 0.4 < np.concatenate(shares).max() <= 1


def test_the_error_bound_covers_a_large_bias(build: Build, rng: np.random.Generator) -> None:
    table = rng.normal(size=(200, 384)).astype(np.float32) * 1e-4
    bias = rng.uniform(2e4, 3e4, 200).astype(np.float32)
    bias[5] = -np.inf  # a token that is never chosen
    rows = rng.normal(size=(16, 384)).astype(np.float32)
    for form in ("MatMul and Add", "Gemm", "tied Gemm with bias"):
        approximate, exact, error_bound, _ = project(build, table, rows, form, bias)
        with np.errstate(invalid="ignore"):
            distance = np.abs(approximate - exact)
        assert (np.delete(distance, 5, 1) <= error_bound[:, None]).all()
        assert np.delete(distance, 5, 1).max() > 1e-3, "adding the bias has a rounding error"
        assert (approximate[:, 5] == -np.inf).all()
        assert np.isfinite(error_bound).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_refine_graph_returns_exact_logits(
    build: Build, rng: np.random.Generator, form: str
) -> None:
    table = rng.normal(size=(300, 96)).astype(np.float32)
    bias = rng.normal(size=300).astype(np.float32)
    rows = rng.normal(size=(3, 96)).astype(np.float32)
    approximate, exact, error_bound, refine_graph = project(build, table, rows, form, bias)
    errors = np.abs(approximate - exact)
    assert errors.max() > 10 * float32_error(largest(exact)), "the logits are approximate"
    for tokens in (np.array([7]), np.array([299, 0, 0, 12]), np.arange(300)):
        for row in range(3):
            refined = run(refine_graph, {HIDDEN: rows[row : row + 1], CANDIDATES: tokens})[LOGITS]
            # float32 sums of 96 products in another order
            assert_close_in_float32(refined[0], exact[row, tokens], size=largest(exact))
    candidates = approximate >= approximate.max(1, keepdims=True) - 2 * error_bound[:, None]
    assert candidates[np.arange(3), exact.argmax(1)].all()


def test_a_row_that_is_not_finite_has_no_finite_error_bound(
    build: Build, rng: np.random.Generator
) -> None:
    table = rng.normal(size=(50, 32)).astype(np.float32)
    rows = rng.normal(size=(2, 32)).astype(np.float32)
    rows[0, 3], rows[1, 5] = np.nan, np.inf
    _, _, error_bound, _ = project(build, table, rows)
    assert not np.isfinite(error_bound).any()


def test_a_tied_table_is_stored_once_in_float(build: Build, rng: np.random.Generator) -> None:
    table = rng.normal(size=(60, 32)).astype(np.float32)
    graphs = both(build, table, FORMS["tied Gemm"])
    refine_graph = two_stage_projection(graphs)
    assert refine_graph is not None
    (stored_table,) = (
        v for v in refine_graph.graph.initializers.values() if v.const_value is not None
    )
    assert stored_table.const_value is not None
    np.testing.assert_array_equal(stored_table.const_value.numpy(), table)
    assert "table" in graphs[GraphRole.STEP].graph.initializers
    assert "columns" not in graphs[GraphRole.STEP].graph.initializers


OTHER_PROJECTIONS = {
    "scaled": ("logits = Gemm <alpha: float = 0.5> (h, columns)", ""),
    "two biases": ("g = Gemm (h, columns, bias)  logits = Add (g, bias)", ""),
    "bias of the batch": ("m = MatMul (h, columns)  logits = Add (m, m)", ""),
    "one bias for all": ("m = MatMul (h, columns)  logits = Add (m, one)", ""),
    "bias in two dimensions": ("m = MatMul (h, columns)  logits = Add (m, one_row)", ""),
    "capped": ("m = MatMul (h, columns)  logits = Tanh (m)", ""),
    "computed weight": ("c = Relu (columns)  logits = MatMul (h, c)", ""),
    "taken by others": (
        "logits = MatMul (h, columns)  p = Softmax (logits)", ", float[b,60] p",
    ),
    "product taken by others": (
        "m = MatMul (h, columns)  logits = Add (m, bias)  p = Softmax (m)", ", float[b,60] p",
    ),
    "a head of that name": (
        "logits = MatMul (h, columns)  hidden = Softmax (h)", ", float[b,32] hidden",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_PROJECTIONS)
def test_other_projections_are_left_alone(
    build: Build, rng: np.random.Generator, name: str
) -> None:
    projection, head = OTHER_PROJECTIONS[name]
    table = rng.normal(size=(60, 32)).astype(np.float32)
    graphs = {
        role: build_with(build, table, projection, head)
        for role in (GraphRole.PREFILL, GraphRole.STEP)
    }
    before = [operators(model) for model in graphs.values()]
    assert two_stage_projection(graphs) is None
    assert [operators(model) for model in graphs.values()] == before


def build_with(build: Build, table: Floats, projection: str, head: str) -> ir.Model:
    words, width = table.shape
    text = f"""g (float[b,{width}] x) => (float[b,{words}] logits{head}) {{
        h = Relu (x)
        {projection}
    }}"""
    constants: dict[str, NDArray[Any]] = {
        "columns": np.ascontiguousarray(table.T),
        "bias": np.ones(words, np.float32),
        "one": np.float32(1).reshape(1),
        "one_row": np.ones((1, words), np.float32),
    }
    names = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
    return build(text, {name: a for name, a in constants.items() if name in names})


def test_graphs_that_differ_are_left_alone(build: Build, rng: np.random.Generator) -> None:
    tables = rng.normal(size=(2, 60, 32)).astype(np.float32)
    roles = (GraphRole.PREFILL, GraphRole.STEP)
    graphs = {r: graph(build, t, FORMS["MatMul"]) for r, t in zip(roles, tables, strict=True)}
    assert two_stage_projection(graphs) is None
    assert operators(graphs[GraphRole.STEP])["MatMul"] == 1


def test_a_decoder_without_prefill_is_left_alone(build: Build, rng: np.random.Generator) -> None:
    table = rng.normal(size=(60, 32)).astype(np.float32)
    assert two_stage_projection({GraphRole.STEP: graph(build, table, FORMS["MatMul"])}) is None


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_left_alone(build: Build, number: float) -> None:
    table = np.ones((60, 32), np.float32)
    table[3, 4] = number
    assert two_stage_projection(both(build, table, FORMS["MatMul"])) is None


def test_half_precision_is_left_alone(build: Build) -> None:
    text = "g (float16[b,32] x) => (float16[b,60] logits) { h = Relu (x) logits = MatMul (h, w) }"
    model = build(text, {"w": np.ones((32, 60), np.float16)})
    assert two_stage_projection({GraphRole.PREFILL: model, GraphRole.STEP: model}) is None


def test_a_small_vocabulary_is_left_alone(
    build: Build, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection_pass, "MIN_VOCABULARY", MIN_VOCABULARY)
    large, small = (
        rng.normal(size=(words, 8)).astype(np.float32)
        for words in (MIN_VOCABULARY, MIN_VOCABULARY - 1)
    )
    assert two_stage_projection(both(build, small, FORMS["MatMul"])) is None
    assert two_stage_projection(both(build, large, FORMS["MatMul"])) is not None

"""The vocabulary projection in two stages: how far rough logits can be off, and what mends them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from hybrid_deploy.calibration.onnxruntime_cpu import two_stage_projection as projection_pass
from hybrid_deploy.calibration.onnxruntime_cpu.two_stage_projection import (
    MIN_VOCABULARY,
    two_stage_projection,
)
from hybrid_deploy.contract import CANDIDATES, HIDDEN, LOGITS, MARGIN, GraphRole
from tests.closeness import assert_close, assert_close_in_float32, float32_error, largest
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
def _few_words_count(monkeypatch: pytest.MonkeyPatch) -> None:
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
    taken = {n: a for n, a in constants.items() if a is not None and f"{n}" in text}
    return build(text, taken)


def both(
    build: Build, table: Floats, projection: str, bias: Floats | None = None, head: str = ""
) -> Graphs:
    roles = (GraphRole.PREFILL, GraphRole.STEP)
    return {role: graph(build, table, projection, bias, head) for role in roles}


def project(
    build: Build, table: Floats, rows: Floats, form: str = "MatMul", bias: Floats | None = None
) -> tuple[Floats, Floats, Floats, ir.Model]:
    """Returns rough logits, true logits and the margin of each row, and the refining graph."""
    graphs = both(build, table, FORMS[form], bias)
    given: dict[str, NDArray[Any]] = {"token": np.zeros(len(rows), np.int64), "x": rows}
    true = run(graphs[GraphRole.STEP], given)[LOGITS]
    refining = two_stage_projection(graphs, exact=True)
    assert refining is not None
    for model in graphs.values():
        assert operators(model)["DynamicQuantizeMatMul"] == 1
        assert not operators(model).keys() & {"MatMul", "Gemm"}
    found = run(graphs[GraphRole.STEP], given)
    assert list(found) == [LOGITS, HIDDEN, MARGIN]
    np.testing.assert_array_equal(found[HIDDEN], rows)
    return found[LOGITS], true, found[MARGIN], refining


def off(rough: Floats, true: Floats, margin: Floats) -> NDArray[np.float64]:
    """Returns how much of its margin each row's worst logit takes."""
    distance = np.abs(rough.astype(np.float64) - true.astype(np.float64)).max(1)
    return np.asarray(distance / margin)


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
def test_the_margin_is_a_bound(build: Build, rng: np.random.Generator, width: int) -> None:
    table = rng.normal(size=(300, width)).astype(np.float32)
    table[7], table[8], table[9] = 0, 100 * table[8], 1e-39
    table[10, 3] = 1e4
    taken = []
    for rows in rows_of_all_kinds(rng, table):
        rough, true, margin, _ = project(build, table, rows)
        assert (np.abs(rough - true) <= margin[:, None]).all()
        for alone in range(min(len(rows), 2)):  # alone a row has a range of its own
            one = project(build, table, rows[alone : alone + 1])
            assert (np.abs(one[0] - one[1]) <= one[2][:, None]).all()
            if margin[alone] > 0:
                taken.append(off(*one[:3]))
    assert 0.02 < np.concatenate(taken).max() <= 1, "it says something"


def worst_rows(rng: np.random.Generator, words: int, width: int) -> tuple[Floats, Floats]:
    """Returns a table that 7 bits hold exactly, and rows half a step from what 8 bits hold.

    All roundings go the same way, and all weights are alike, so that they add up: the rough logits
    are as far off as they can be at all.
    """
    table = np.where(np.arange(words)[:, None] % 2, -1, 1) * np.ones((words, width))
    steps = rng.integers(100, 255, (8, width)) + 0.5
    steps[:, 0] = 254.5  # the largest, and with the smallest at -0.5 the range is 255 steps
    steps[:, 1] = -0.5
    return table.astype(np.float32), steps


@pytest.mark.parametrize("scale", [1.0, 1 / 3, 1e-3, 7.7])
def test_the_margin_holds_where_it_is_reached(
    build: Build, rng: np.random.Generator, scale: float
) -> None:
    table, steps = worst_rows(rng, 64, 2048)
    nudged = scale * (steps - 3e-5)  # so that a quotient is never just above the middle
    taken = []
    for row in nudged.astype(np.float32):
        rough, true, margin, _ = project(build, table, row[None])
        taken.append(off(rough, true, margin))
    assert 0.95 < np.concatenate(taken).max() <= 1


def test_the_margin_holds_what_the_weights_lose(build: Build, rng: np.random.Generator) -> None:
    # one large weight makes steps so wide that all others are lost; rows like what is lost
    table = rng.uniform(0.2, 0.49, (32, 512)).astype(np.float32)
    table[:, 0] = 64
    rows = table.copy()
    rows[:, 0] = 0
    taken = [off(*project(build, table, row[None])[:3]) for row in rows]
    assert 0.4 < np.concatenate(taken).max() <= 1


def test_the_margin_counts_a_large_bias(build: Build, rng: np.random.Generator) -> None:
    table = rng.normal(size=(200, 384)).astype(np.float32) * 1e-4
    bias = rng.uniform(2e4, 3e4, 200).astype(np.float32)
    bias[5] = -np.inf  # a token that never comes
    rows = rng.normal(size=(16, 384)).astype(np.float32)
    for form in ("MatMul and Add", "Gemm", "tied Gemm with bias"):
        rough, true, margin, _ = project(build, table, rows, form, bias)
        with np.errstate(invalid="ignore"):
            distance = np.abs(rough - true)
        assert (np.delete(distance, 5, 1) <= margin[:, None]).all()
        assert np.delete(distance, 5, 1).max() > 1e-3, "adding it loses something"
        assert (rough[:, 5] == -np.inf).all()
        assert np.isfinite(margin).all()


@pytest.mark.parametrize("form", FORMS)
def test_refining_gives_the_float_product(
    build: Build, rng: np.random.Generator, form: str
) -> None:
    table = rng.normal(size=(300, 96)).astype(np.float32)
    bias = rng.normal(size=300).astype(np.float32)
    rows = rng.normal(size=(3, 96)).astype(np.float32)
    rough, true, margin, refining = project(build, table, rows, form, bias)
    assert np.abs(rough - true).max() > 10 * float32_error(largest(true)), "or nothing is refined"
    for tokens in (np.array([7]), np.array([299, 0, 0, 12]), np.arange(300)):
        for row in range(3):
            found = run(refining, {HIDDEN: rows[row : row + 1], CANDIDATES: tokens})[LOGITS]
            # float32 sums of 96 products in another order
            assert_close_in_float32(found[0], true[row, tokens], size=largest(true))
    likely = rough >= rough.max(1, keepdims=True) - 2 * margin[:, None]
    assert likely[np.arange(3), true.argmax(1)].all()


def test_a_row_that_is_not_finite_has_no_finite_margin(
    build: Build, rng: np.random.Generator
) -> None:
    table = rng.normal(size=(50, 32)).astype(np.float32)
    rows = rng.normal(size=(2, 32)).astype(np.float32)
    rows[0, 3], rows[1, 5] = np.nan, np.inf
    _, _, margin, _ = project(build, table, rows)
    assert not np.isfinite(margin).any()


def test_a_tied_table_is_stored_once_in_float(build: Build, rng: np.random.Generator) -> None:
    table = rng.normal(size=(60, 32)).astype(np.float32)
    graphs = both(build, table, FORMS["tied Gemm"])
    refining = two_stage_projection(graphs, exact=True)
    assert refining is not None
    (looked_up,) = (v for v in refining.graph.initializers.values() if v.const_value is not None)
    assert looked_up.const_value is not None
    np.testing.assert_array_equal(looked_up.const_value.numpy(), table)
    assert "table" in graphs[GraphRole.STEP].graph.initializers
    assert "columns" not in graphs[GraphRole.STEP].graph.initializers


OTHERS = {
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


@pytest.mark.parametrize("name", OTHERS)
def test_other_projections_are_left_alone(
    build: Build, rng: np.random.Generator, name: str
) -> None:
    projection, head = OTHERS[name]
    table = rng.normal(size=(60, 32)).astype(np.float32)
    graphs = {
        role: build_with(build, table, projection, head)
        for role in (GraphRole.PREFILL, GraphRole.STEP)
    }
    before = [operators(model) for model in graphs.values()]
    assert two_stage_projection(graphs, exact=True) is None
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
    taken = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
    return build(text, {name: a for name, a in constants.items() if name in taken})


def test_graphs_that_differ_are_left_alone(build: Build, rng: np.random.Generator) -> None:
    tables = rng.normal(size=(2, 60, 32)).astype(np.float32)
    roles = (GraphRole.PREFILL, GraphRole.STEP)
    graphs = {r: graph(build, t, FORMS["MatMul"]) for r, t in zip(roles, tables, strict=True)}
    assert two_stage_projection(graphs, exact=True) is None
    assert operators(graphs[GraphRole.STEP])["MatMul"] == 1


def test_a_decoder_without_prefill_is_left_alone(build: Build, rng: np.random.Generator) -> None:
    table = rng.normal(size=(60, 32)).astype(np.float32)
    assert (
        two_stage_projection({GraphRole.STEP: graph(build, table, FORMS["MatMul"])}, exact=True)
        is None
    )


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_left_alone(build: Build, number: float) -> None:
    table = np.ones((60, 32), np.float32)
    table[3, 4] = number
    assert two_stage_projection(both(build, table, FORMS["MatMul"]), exact=True) is None


def test_half_precision_is_left_alone(build: Build) -> None:
    text = "g (float16[b,32] x) => (float16[b,60] logits) { h = Relu (x) logits = MatMul (h, w) }"
    model = build(text, {"w": np.ones((32, 60), np.float16)})
    assert (
        two_stage_projection({GraphRole.PREFILL: model, GraphRole.STEP: model}, exact=True) is None
    )


def test_a_small_vocabulary_is_left_alone(
    build: Build, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection_pass, "MIN_VOCABULARY", MIN_VOCABULARY)
    large, small = (
        rng.normal(size=(words, 8)).astype(np.float32)
        for words in (MIN_VOCABULARY, MIN_VOCABULARY - 1)
    )
    assert two_stage_projection(both(build, small, FORMS["MatMul"]), exact=True) is None
    assert two_stage_projection(both(build, large, FORMS["MatMul"]), exact=True) is not None


@pytest.mark.parametrize(
    ("form", "weight"), [("MatMul", "columns"), ("Gemm", "columns"), ("tied Gemm", "table")]
)
@pytest.mark.parametrize(("width", "stored"), [(256, "int4"), (96, "int4"), (24, "int8")])
def test_a_likely_margin_holds_for_nearly_all_logits(
    build: Build, rng: np.random.Generator, width: int, stored: str, form: str, weight: str
) -> None:
    table = rng.normal(size=(5000, width)).astype(np.float32)
    rows = rng.normal(size=(8, width)).astype(np.float32)
    bias = rng.normal(size=5000).astype(np.float32)
    graphs = both(build, table, FORMS[form], bias)
    given: dict[str, NDArray[Any]] = {"token": np.zeros(len(rows), np.int64), "x": rows}
    true = run(graphs[GraphRole.STEP], given)[LOGITS]
    refining = two_stage_projection(graphs, exact=False)
    assert refining is not None
    step = graphs[GraphRole.STEP]
    assert f"{weight}_{stored}" in step.graph.initializers
    found = run(step, given)
    distance = np.abs(found[LOGITS] - true) / found[MARGIN][:, None]
    assert 0.2 < distance.max() < 1.1, "four standard deviations and more are rare, not impossible"
    best = np.argsort(true[0])[-5:]
    exact = run(refining, {HIDDEN: rows[:1], CANDIDATES: best})[LOGITS][0]
    assert_close(exact, true[0, best], share=2e-3)  # the table is float16, of 11 bits
    assert "projection_table_fp16" in refining.graph.initializers

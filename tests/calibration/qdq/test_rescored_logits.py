"""Exact logits of the likeliest tokens behind a projection with weights of 4 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from hybrid_deploy.calibration.qdq import vocabulary_projection as projection_module
from hybrid_deploy.calibration.qdq.rescored_logits import RESCORED_TOKENS, rescore_likeliest
from hybrid_deploy.calibration.qdq.vocabulary_projection import vocabulary_projection
from hybrid_deploy.calibration.recipes import DecoderForm
from hybrid_deploy.calibration.rewrite.decoder import quantize_decoder
from hybrid_deploy.contract import LOGITS, GraphRole
from tests.closeness import assert_close_in_float32, largest
from tests.fakes.graph_runs import operators, run

Build = Callable[..., ir.Model]
Floats = NDArray[np.float32]

WORDS, WIDTH = 5000, 64
FORMS = {
    "MatMul": "logits = MatMul (h, columns)",
    "MatMul and Add": "m = MatMul (h, columns)  logits = Add (m, bias)",
    "Add and MatMul": "m = MatMul (h, columns)  logits = Add (bias, m)",
    "capped": "m = MatMul (h, columns)  d = Div (m, cap)  t = Tanh (d)  logits = Mul (t, cap)",
}
RESCORING = {"TopK": 1, "ScatterElements": 1}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def step(
    build: Build, table: Floats, form: str, bias: Floats | None = None, rank: str = "b"
) -> ir.Model:
    """Returns a graph that looks tokens up in a table and projects rows with the same table."""
    words, width = table.shape
    text = f"""g (int64[b] token, float[{rank},{width}] x) => (float[{rank},{words}] logits) {{
        embedded = Gather <axis: int = 0> (table, token)
        sum = ReduceSum <keepdims: int = 0> (embedded)
        nothing = Sub (sum, sum)
        h = Add (x, nothing)
        {FORMS[form]}
    }}"""
    constants: dict[str, NDArray[Any]] = {
        "table": table,
        "columns": np.ascontiguousarray(table.T),
        "bias": np.zeros(words, np.float32) if bias is None else bias,
        "cap": np.float32(64).reshape(1),
    }
    return build(text, {name: a for name, a in constants.items() if name in text})


def feeds(rows: Floats) -> dict[str, NDArray[Any]]:
    return {"token": np.zeros(len(rows), np.int64), "x": rows}


def quantized(model: ir.Model, form: DecoderForm = DecoderForm.INT4_WEIGHTS) -> ir.Model:
    quantize_decoder({GraphRole.STEP: model}, form)
    return model


def rows_near(table: Floats, rng: np.random.Generator, count: int) -> Floats:
    """Returns rows that point to some tokens, as those of a trained decoder do."""
    tokens = rng.integers(0, len(table), count)
    rows = table[tokens] + rng.normal(size=(count, table.shape[1])).astype(np.float32)
    return rows.astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
def test_the_likeliest_tokens_have_their_exact_logits(
    build: Build, rng: np.random.Generator, form: str
) -> None:
    # numbers that float16 holds, so that a look-up in the float16 table is exact
    table = (rng.integers(-64, 64, (WORDS, WIDTH)) / 64).astype(np.float32)
    bias = rng.normal(size=WORDS).astype(np.float32)
    rows = rows_near(table, rng, 4)
    exact = run(step(build, table, form, bias), feeds(rows))[LOGITS]
    model = quantized(step(build, table, form, bias))
    assert operators(model).items() >= RESCORING.items()
    logits = run(model, feeds(rows))[LOGITS]
    assert (logits.argmax(-1) == exact.argmax(-1)).all()
    is_exact = np.abs(logits - exact) < 1e-4 * largest(exact)
    # rounding hits some other tokens by chance; of those, the share is small
    assert (is_exact.sum(-1) >= RESCORED_TOKENS).all() and is_exact.mean() < 0.2
    likeliest = np.argsort(exact, -1)[:, -8:]
    assert np.take_along_axis(is_exact, likeliest, -1).all()


def test_plain_rounding_chooses_other_tokens(build: Build, rng: np.random.Generator) -> None:
    """The rows of this file are such that 4 bits alone do not find the likeliest token."""
    table = rng.normal(size=(WORDS, WIDTH)).astype(np.float32)
    rows = rng.normal(size=(64, WIDTH)).astype(np.float32)
    exact = run(step(build, table, "MatMul"), feeds(rows))[LOGITS].argmax(-1)
    rough = step(build, table, "MatMul")
    quantize_decoder({GraphRole.STEP: rough}, DecoderForm.INT4_WEIGHTS)
    rescored = run(rough, feeds(rows))[LOGITS]
    assert (rescored.argmax(-1) == exact).all()
    for node in list(rough.graph):
        if node.op_type == "ScatterElements":
            first = node.inputs[0]
            assert first is not None
            rough.graph.outputs[0].name = "unused"
            first.name = LOGITS
            rough.graph.outputs[:] = [first]
    assert (run(rough, feeds(rows))[LOGITS].argmax(-1) != exact).sum() > 3


def test_rows_of_any_rank(build: Build, rng: np.random.Generator) -> None:
    table = rng.normal(size=(WORDS, WIDTH)).astype(np.float32)
    rows = rows_near(table, rng, 6).reshape(2, 3, WIDTH)
    exact = run(step(build, table, "MatMul", rank="b,l"), feeds(rows))[LOGITS]
    logits = run(quantized(step(build, table, "MatMul", rank="b,l")), feeds(rows))[LOGITS]
    assert logits.shape == (2, 3, WORDS)
    assert (logits.argmax(-1) == exact.argmax(-1)).all()


def test_a_tied_table_is_stored_once(build: Build, rng: np.random.Generator) -> None:
    table = rng.normal(size=(WORDS, WIDTH)).astype(np.float32)
    model = quantized(step(build, table, "MatMul"))
    large = {
        name: value.const_value.nbytes
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes > table.size // 4
    }
    assert large == {"table_fp16": 2 * table.size, "columns_int4": table.size // 2}


def test_a_table_beyond_float16_stays_float32(build: Build, rng: np.random.Generator) -> None:
    table = rng.normal(size=(WORDS, WIDTH)).astype(np.float32)
    table[7, 3] = 1e6
    rows = rows_near(table[:7], rng, 3)
    model = quantized(step(build, table, "MatMul"))
    exact = run(step(build, table, "MatMul"), feeds(rows))[LOGITS]
    logits = run(model, feeds(rows))[LOGITS]
    assert_close_in_float32(logits.max(-1), exact.max(-1), size=largest(exact))


def test_a_projection_of_its_own_brings_its_table(build: Build, rng: np.random.Generator) -> None:
    table, other = rng.normal(size=(2, WORDS, WIDTH)).astype(np.float32)
    model = step(build, table, "MatMul")
    model.graph.initializers["columns"].const_value = ir.tensor(
        np.ascontiguousarray(other.T), name="columns"
    )
    exact = other[:3] @ other.T
    logits = run(quantized(model), feeds(other[:3]))[LOGITS]
    assert "projection_table_fp16" in model.graph.initializers
    assert (logits.argmax(-1) == exact.argmax(-1)).all()
    # the table is rounded to float16, with an error of 2**-11 of each number
    np.testing.assert_allclose(logits.max(-1), exact.max(-1), rtol=2**-10)


@pytest.mark.parametrize("form", [DecoderForm.INT4_WEIGHTS, DecoderForm.INT8_CPU])
def test_a_small_vocabulary_keeps_8_bits(
    build: Build, rng: np.random.Generator, form: DecoderForm
) -> None:
    table = rng.normal(size=(projection_module.MIN_VOCABULARY - 1, WIDTH)).astype(np.float32)
    model = quantized(step(build, table, "MatMul"), form)
    assert "columns_int8" in model.graph.initializers
    assert not operators(model)["TopK"]


def test_8_bits_need_no_rescoring(build: Build, rng: np.random.Generator) -> None:
    table = rng.normal(size=(WORDS, WIDTH)).astype(np.float32)
    model = quantized(step(build, table, "MatMul"), DecoderForm.INT8_WEIGHTS)
    assert not operators(model)["TopK"] and "columns_int8" in model.graph.initializers


OTHER_HEADS = {
    "alpha": "logits = Gemm <alpha: float = 0.5> (h, columns)",
    "computed weight": "c = Relu (columns)  logits = MatMul (h, c)",
    "sum of two products": "m = MatMul (h, columns)  n = MatMul (h, columns)  logits = Add (m, n)",
    "log-softmax": "m = MatMul (h, columns)  logits = LogSoftmax <axis: int = -1> (m)",
}


@pytest.mark.parametrize("name", OTHER_HEADS)
def test_other_heads_have_no_projection(build: Build, rng: np.random.Generator, name: str) -> None:
    table = rng.normal(size=(60, 32)).astype(np.float32)
    text = f"""g (float[b,32] x) => (float[b,60] logits) {{ h = Relu (x)  {OTHER_HEADS[name]} }}"""
    model = build(text, {"columns": np.ascontiguousarray(table.T)})
    assert vocabulary_projection(model.graph) is None


def test_a_bias_of_the_gemm_is_taken_along(build: Build, rng: np.random.Generator) -> None:
    table = rng.normal(size=(80, 32)).astype(np.float32)
    bias = 10 * rng.normal(size=80).astype(np.float32)
    rows = rng.normal(size=(3, 32)).astype(np.float32)
    text = "g (float[b,32] x) => (float[b,80] logits) { h = Relu (x) logits = Gemm (h, c, bias) }"
    model = build(text, {"c": np.ascontiguousarray(table.T), "bias": bias})
    expected = run(model, {"x": rows})[LOGITS]
    projection = vocabulary_projection(model.graph)
    assert projection is not None and projection.bias is not None
    rescore_likeliest(model.graph, projection)
    assert_close_in_float32(run(model, {"x": rows})[LOGITS], expected, size=largest(expected))

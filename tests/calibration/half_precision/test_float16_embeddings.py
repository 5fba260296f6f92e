"""Embedding tables in float16, behind a Gather whose rows are float32 again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from hybrid_deploy.calibration.half_precision.float16_embeddings import convert_embeddings
from tests.calibration.rewrite.test_encoder import checked

Build = Callable[..., ir.Model]

EMBEDDING = """g (int64[b] token, float[b,64] x) => (float[b,64] y) {
    rows = Gather (table, token)
    y = Add (rows, x)
}"""
TWICE = """g (int64[b] token, float[b,64] x) => (float[b,64] y) {
    rows = Gather (table, token)
    more = Gather (table, other)
    sum = Add (rows, more)
    y = Add (sum, x)
}"""
TIED = """g (int64[b] token, float[b,64] x) => (float[b,512] y) {
    rows = Gather (table, token)
    h = Add (rows, x)
    back = Transpose (table)
    y = MatMul (h, back)
}"""
ROWS_ARE_OUTPUT = """g (int64[b] token, float[b,64] x) => (float[b,64] rows, float[b,64] y) {
    rows = Gather (table, token)
    y = Add (rows, x)
}"""


@pytest.fixture
def table() -> NDArray[np.float32]:
    """Returns 512 rows of 64 float32 numbers, 128 KiB."""
    return np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)


def run(model: ir.Model, token: NDArray[np.int64], x: NDArray[np.float32]) -> list[np.ndarray]:
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return [np.asarray(output) for output in session.run(None, {"token": token, "x": x})]


TOKENS, ZEROS = np.array([3, 511, 3]), np.zeros((3, 64), np.float32)


def test_rows_are_those_of_a_table_in_float16(build: Build, table: NDArray[np.float32]) -> None:
    model = build(EMBEDDING, {"table": table})
    convert_embeddings(model)
    graph = checked(model)
    assert [node.op_type for node in graph.node] == ["Gather", "Cast", "Add"]
    stored = model.graph.initializers["table_fp16"].const_value
    assert list(model.graph.initializers) == ["table_fp16"], "the float32 table is gone"
    assert stored is not None and stored.nbytes == table.nbytes // 2
    (rows,) = run(model, TOKENS, ZEROS)
    np.testing.assert_array_equal(rows, table[TOKENS].astype(np.float16).astype(np.float32))
    assert (rows != table[TOKENS]).any(), "float16 rounds these numbers"


def test_a_table_with_two_gathers_is_stored_once(build: Build, table: NDArray[np.float32]) -> None:
    model = build(TWICE, {"table": table, "other": np.array([0, 1, 2])})
    convert_embeddings(model)
    checked(model)
    assert set(model.graph.initializers) == {"table_fp16", "other"}
    (rows,) = run(model, TOKENS, ZEROS)
    float16_table = table.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(rows, float16_table[TOKENS] + float16_table[:3])


def test_rows_that_are_an_output_keep_their_name_and_type(
    build: Build, table: NDArray[np.float32]
) -> None:
    model = build(ROWS_ARE_OUTPUT, {"table": table})
    convert_embeddings(model)
    checked(model)
    assert [(v.name, v.dtype) for v in model.graph.outputs] == [
        ("rows", ir.DataType.FLOAT), ("y", ir.DataType.FLOAT),
    ]  # fmt: skip
    rows, y = run(model, TOKENS, ZEROS)
    np.testing.assert_array_equal(rows, table[TOKENS].astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(rows, y)


def small(table: NDArray[np.float32]) -> NDArray[np.float32]:
    return table[:255]  # one row less than 64 KiB


def overflowing(table: NDArray[np.float32]) -> NDArray[np.float32]:
    table[100, 3] = -65520  # the first number that float16 rounds to infinity
    return table


def not_finite(table: NDArray[np.float32]) -> NDArray[np.float32]:
    table[100, 3] = np.nan
    return table


@pytest.mark.parametrize(
    ("text", "change"),
    [(EMBEDDING, small), (EMBEDDING, overflowing), (EMBEDDING, not_finite), (TIED, np.copy)],
    ids=["small", "overflowing", "NaN", "also multiplied"],
)
def test_small_shared_or_overflowing_tables_stay_float32(
    build: Build, table: NDArray[np.float32], text: str,
    change: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> None:  # fmt: skip
    model = build(text, {"table": change(table)})
    before = [node.op_type for node in model.graph]
    convert_embeddings(model)
    assert list(model.graph.initializers) == ["table"]
    assert model.graph.initializers["table"].dtype is ir.DataType.FLOAT
    assert [node.op_type for node in model.graph] == before


def test_the_largest_number_of_float16_is_no_overflow(
    build: Build, table: NDArray[np.float32]
) -> None:
    table[100, 3] = 65504
    model = build(EMBEDDING, {"table": table})
    convert_embeddings(model)
    assert list(model.graph.initializers) == ["table_fp16"]
    np.testing.assert_array_equal(run(model, np.array([100]), ZEROS[:1])[0][0, 3], 65504)

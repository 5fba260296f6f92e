"""Beam steps, whose memory is shared, against steps whose memory is copied for every beam."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from hybrid_deploy.contract import GraphRole
from hybrid_deploy.onnx_graphs.beam_step import add_beam_step, beam_step
from tests.closeness import assert_close_in_float32, float32_error, largest

INPUTS, BEAMS, MEMORY = 3, 4, 5

KEYS = "float[batch, 2, memory, 3] cross_key_0"
TRANSPOSED_KEYS = "float[batch, 2, 3, memory] cross_key_0"
VALUES = "float[batch, 2, memory, 3] cross_value_0"
MASK = "bool[batch, 1, 1, memory] cross_mask_0"
TABLE = "float[7, 6] table = {" + ", ".join(str(round(0.3 * (i % 11) - 1, 2)) for i in range(42))
QUERY = """
    rows = Gather(table, token)
    split = Reshape(rows, heads)
    query = Unsqueeze(split, two)
"""
END = """
    squeezed = Squeeze(result, two)
    joined = Reshape(squeezed, width)
    logits = Add(joined, rows)
"""
ATTENTION = "result = Attention(query, cross_key_0, cross_value_0)"
MASKED = "result = Attention(query, cross_key_0, cross_value_0, cross_mask_0)"
WRITTEN_OUT = """
    scores = MatMul(query, cross_key_0)
    seen = Where(cross_mask_0, scores, low)
    shares = Softmax <axis = -1> (seen)
    result = MatMul(shares, cross_value_0)
"""
QUERY_AS_COLUMN = """
    column = Reshape(query, columns)
    raw = MatMul(cross_key_0, column)
    first = Shape <end = 1> (token)
    last = Shape <start = 2, end = 3> (cross_value_0)
    sizes = Concat <axis = 0> (first, two, one, last)
    scores = Reshape(raw, sizes)
    not_seen = Not(cross_mask_0)
    seen = Where(not_seen, low, scores)
    shares = Softmax(seen)
    result = MatMul(shares, cross_value_0)
"""
SOFTMAX_WITHOUT_ROWS = """
    raw = MatMul(query, cross_key_0)
    first = Shape <end = 1> (token)
    last = Shape <start = 2, end = 3> (cross_value_0)
    squeezed_scores = Squeeze(raw, two)
    apart = Concat <axis = 0> (minus, last)
    scores = Reshape(squeezed_scores, apart)
    shares = Softmax <axis = 1> (scores)
    sizes = Concat <axis = 0> (first, two, one, last)
    again = Reshape(shares, sizes)
    result = MatMul(again, cross_value_0)
"""
SCALED_BY_MEMORY = """
    scale = ReduceMax <keepdims = 1> (cross_value_0, two)
    scaled = Mul(query, scale)
    plain = Attention(scaled, cross_key_0, cross_value_0)
    result = Mul(scale, plain)
"""


def step_of(body: str, *memory: str, batch: str = "batch", query: str = QUERY) -> ir.Model:
    """Returns a step without caches, with two heads of width 3."""
    inputs = ", ".join([f"int64[{batch}] token", *memory]).replace("[batch", f"[{batch}")
    text = f"""
    <ir_version: 11, opset_import: ["" : 24]>
    step ({inputs}) => (float[{batch}, 6] logits)
    <{TABLE}}}, int64[3] heads = {{-1, 2, 3}}, int64[1] one = {{1}}, int64[1] two = {{2}},
     int64[1] minus = {{-1}},
     int64[2] width = {{-1, 6}}, int64[4] columns = {{-1, 2, 3, 1}}, float low = {{-10000.0}}>
    {{ {query} {body} {END} }}
    """
    model = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), data_prop=True)
    return ir.from_proto(model)


def run(model: ir.Model, feeds: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    proto = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(proto, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = np.asarray(session.run(["logits"], feeds)[0])
    return logits


def feeds_of(model: ir.Model) -> dict[str, NDArray[Any]]:
    """Returns a token for each of INPUTS * BEAMS rows, and random memory for each input."""
    rng = np.random.default_rng(0)
    feeds: dict[str, NDArray[Any]] = {"token": rng.integers(0, 7, INPUTS * BEAMS)}
    for value in model.graph.inputs:
        if value.name != "token":
            assert value.shape is not None
            rest = [size if isinstance(size, int) else MEMORY for size in value.shape[1:]]
            numbers = rng.standard_normal((INPUTS, *rest))
            is_mask = value.dtype is ir.DataType.BOOL
            feeds[str(value.name)] = numbers > -0.5 if is_mask else numbers.astype(np.float32)
    return feeds


def first_sizes(model: ir.Model) -> dict[str, str]:
    shapes = {str(v.name): v.shape for v in model.graph.inputs}
    return {name: str(shape[0]) for name, shape in shapes.items() if shape is not None}


@pytest.mark.parametrize(
    ("body", "memory"),
    [
        (ATTENTION, (KEYS, VALUES)),
        (MASKED, (KEYS, VALUES, MASK)),
        (WRITTEN_OUT, (TRANSPOSED_KEYS, VALUES, MASK)),
        (QUERY_AS_COLUMN, (KEYS, VALUES, MASK)),
        (SOFTMAX_WITHOUT_ROWS, (TRANSPOSED_KEYS, VALUES)),
        (SCALED_BY_MEMORY, (KEYS, VALUES)),
    ],
)
def test_shared_memory_gives_the_logits_of_copied_memory(
    body: str, memory: tuple[str, ...]
) -> None:
    step = step_of(body, *memory)
    before = ir.to_proto(step)
    shared = beam_step(step)
    assert shared is not None
    assert ir.to_proto(step) == before, "the step stays unchanged"
    sizes = first_sizes(shared)
    assert sizes.pop("token") == "batch" and set(sizes.values()) == {"inputs"}
    feeds = feeds_of(step)
    copied = {n: v if n == "token" else np.repeat(v, BEAMS, 0) for n, v in feeds.items()}
    expected = run(step, copied)
    # a product of several rows sums in another order than several products of one row
    assert_close_in_float32(run(shared, feeds), expected)
    one_beam = {name: value[:INPUTS] for name, value in feeds.items()}
    assert_close_in_float32(run(shared, one_beam), run(step, one_beam))
    rows = expected.reshape(INPUTS, BEAMS, 1, -1)
    distances = np.abs(rows - expected).max(-1)
    assert (distances > 10 * float32_error(largest(expected))).any(), "the beams must differ"


def test_a_mask_of_two_attentions_is_expanded_once() -> None:
    two_attentions = """
        other = Attention(query, cross_key_0, cross_value_0, cross_mask_0)
        more = Attention(other, cross_key_0, cross_value_0, cross_mask_0)
        result = Add(more, other)
    """
    shared = beam_step(step_of(two_attentions, KEYS, VALUES, MASK))
    assert shared is not None
    operators = [node.op_type for node in shared.graph]
    assert operators.count("Attention") == 2 and operators.count("Expand") == 1
    assert operators.count("Transpose") == 2, "folded once, unfolded once"


@pytest.mark.parametrize(
    ("body", "memory"),
    [
        # a sum of a query with every position of memory
        (
            """
            sum = Add(query, cross_value_0)
            bent = Tanh(sum)
            result = ReduceSum <keepdims = 1> (bent, two)
            """,
            (VALUES,),
        ),
        # causal attention, where beams would attend to each other
        ("result = Attention <is_causal = 1> (query, cross_key_0, cross_value_0)", (KEYS, VALUES)),
        # a mask with several rows
        (
            "result = Attention(query, cross_key_0, cross_value_0, cross_mask_0)",
            (KEYS, VALUES, "bool[batch, 1, memory, memory] cross_mask_0"),
        ),
        # an operator that cannot be folded
        ("result = Gather <axis = 0> (cross_value_0, token)", (VALUES,)),
        # a batch size that is read from memory where the number of sequences is needed
        (
            """
            count = Shape <end = 1> (cross_value_0)
            sizes = Concat <axis = 0> (count, two, one, one)
            shape = Expand(query, sizes)
            result = Attention(shape, cross_key_0, cross_value_0)
            """,
            (KEYS, VALUES),
        ),
        # memory whose second axis is the batch: nobody would choose its rows
        (
            """
            turned = Transpose <perm = [1, 0, 2]> (cross_state_0)
            state = Unsqueeze(turned, one)
            more = Add(query, state)
            result = Attention(more, cross_key_0, cross_value_0)
            """,
            (KEYS, VALUES, "float[1, batch, 3] cross_state_0"),
        ),
    ],
)
def test_steps_that_cannot_be_folded_have_no_beam_step(body: str, memory: tuple[str, ...]) -> None:
    step = step_of(body, *memory)
    graphs = {GraphRole.STEP: step}
    assert beam_step(step) is None
    add_beam_step(graphs)
    assert set(graphs) == {GraphRole.STEP}


def test_no_beam_step_without_memory_or_with_a_fixed_batch() -> None:
    assert beam_step(step_of("result = Tanh(query)")) is None
    assert beam_step(step_of(ATTENTION, KEYS, VALUES, batch="2")) is None
    unused = beam_step(step_of("result = Tanh(query)", VALUES))
    assert unused is None, "no operator reads the memory"

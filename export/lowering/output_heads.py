"""Replaces the logits of the decoder graphs by a head, so that a decoding loop stays on the device.

head      outputs
logits    logits (B, V)                            unchanged
argmax    ArgMax(logits)  -> next_token (B,)
topk      TopK(logits, k) -> top_scores (B, k), top_tokens (B, k)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.contract import LOGITS, NEXT_TOKEN, TOP_SCORES, TOP_TOKENS, Head
from hybrid_deploy.errors import ParityError
from hybrid_deploy.runtime.backends.onnxruntime.inference_session import make_session

Arrays = Mapping[str, NDArray[Any]]


def attach_head(model: ir.Model, head: Head, top_k: int) -> None:
    """Replaces the logits of a prefill or step graph by a head, in place.

    `argmax` returns `next_token` (batch,) int64, the first token of the highest logit. `topk`
    returns `top_scores` (batch, k) in the logits' dtype, in descending order, and `top_tokens`
    (batch, k) int64.

    Args:
        model: a graph with the output `logits` (batch, vocabulary).
        head: the head that replaces the logits.
        top_k: k of `topk`; the size of the vocabulary if that is smaller.
    """
    if head is Head.LOGITS:
        return
    outputs = list(model.graph.outputs)
    index = next(index for index, value in enumerate(outputs) if value.name == LOGITS)
    logits, graph = outputs[index], model.graph
    replacements = _argmax(graph, logits) if head is Head.ARGMAX else _topk(graph, logits, top_k)
    outputs[index : index + 1] = replacements
    model.graph.outputs.clear()
    model.graph.outputs.extend(outputs)


def check_head(with_logits: Path, with_head: Path, feeds: Arrays) -> None:
    """Runs a graph with logits and the same graph with a head, and compares their results.

    Args:
        with_logits: file of the graph that returns logits.
        with_head: file of the graph that returns a head.
        feeds: the graphs' inputs by name; an input that a graph lacks is ignored.

    Raises:
        ParityError: the head returns other tokens or scores than the logits imply.
    """
    logits = _run(with_logits, feeds)[LOGITS]
    outputs = _run(with_head, feeds)
    if NEXT_TOKEN in outputs:
        equal = np.array_equal(outputs[NEXT_TOKEN], logits.argmax(-1))
    else:
        scores, tokens = outputs[TOP_SCORES], outputs[TOP_TOKENS]
        highest = -np.sort(-logits, -1)[:, : scores.shape[1]]
        scores_of_tokens = np.take_along_axis(logits, tokens, -1)
        equal = np.array_equal(scores, highest) and np.array_equal(scores_of_tokens, scores)
        equal = equal and np.array_equal(tokens[:, 0], logits.argmax(-1))
    if not equal:
        raise ParityError(
            f"the head of {with_head.name} gives other tokens than the logits; nothing was written"
        )


def _argmax(graph: ir.Graph, logits: ir.Value) -> list[ir.Value]:
    attributes = {"axis": -1, "keepdims": 0, "select_last_index": 0}
    node = ir.node("ArgMax", [logits], attributes, name=NEXT_TOKEN)
    assert logits.shape is not None
    _describe(node.outputs[0], NEXT_TOKEN, ir.DataType.INT64, [logits.shape[0]])
    graph.append(node)
    return list(node.outputs)


def _topk(graph: ir.Graph, logits: ir.Value, top_k: int) -> list[ir.Value]:
    assert logits.shape is not None and logits.dtype is not None
    batch, vocabulary = logits.shape
    count = min(top_k, vocabulary) if isinstance(vocabulary, int) else top_k
    k = ir.val("top_k", const_value=ir.tensor(np.array([count], np.int64), name="top_k"))
    graph.register_initializer(k)
    attributes = {"axis": -1, "largest": 1, "sorted": 1}
    node = ir.node("TopK", [logits, k], attributes, num_outputs=2, name=TOP_TOKENS)
    _describe(node.outputs[0], TOP_SCORES, logits.dtype, [batch, count])
    _describe(node.outputs[1], TOP_TOKENS, ir.DataType.INT64, [batch, count])
    graph.append(node)
    return list(node.outputs)


def _describe(
    value: ir.Value, name: str, dtype: ir.DataType, shape: list[int | ir.SymbolicDim]
) -> None:
    value.name, value.dtype, value.shape = name, dtype, ir.Shape(shape)


def _run(path: Path, feeds: Arrays) -> dict[str, NDArray[Any]]:
    session = make_session(path, threads=None)
    inputs = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    values = session.run(names, {name: a for name, a in feeds.items() if name in inputs})
    return dict(zip(names, values, strict=True))

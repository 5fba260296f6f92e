"""What the decoder graphs return in place of the logits, so that a loop can stay on the device."""

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
    """Replaces the logits of a prefill or step graph, in place.

    `argmax` gives `next_token` (batch,) int64, the first of equals; `topk` gives `top_scores`
    (batch, k) float32 in falling order and `top_tokens` (batch, k) int64.

    Args:
        model: returns `logits` (batch, vocabulary).
        head: what to return instead.
        top_k: how many tokens `topk` gives; the whole vocabulary if that is smaller.
    """
    if head is Head.LOGITS:
        return
    outputs = list(model.graph.outputs)
    place = next(index for index, value in enumerate(outputs) if value.name == LOGITS)
    logits = outputs[place]
    new = _argmax(model.graph, logits) if head is Head.ARGMAX else _topk(model.graph, logits, top_k)
    outputs[place : place + 1] = new
    model.graph.outputs.clear()
    model.graph.outputs.extend(outputs)


def check_head(with_logits: Path, with_head: Path, feeds: Arrays) -> None:
    """Runs a graph with logits and the same with another head, and compares.

    Raises:
        ParityError: the head gives another token or score than the logits do.
    """
    logits = _run(with_logits, feeds)[LOGITS]
    given = _run(with_head, feeds)
    if NEXT_TOKEN in given:
        same = np.array_equal(given[NEXT_TOKEN], logits.argmax(-1))
    else:
        scores, tokens = given[TOP_SCORES], given[TOP_TOKENS]
        best = -np.sort(-logits, -1)[:, : scores.shape[1]]
        picked = np.take_along_axis(logits, tokens, -1)
        same = np.array_equal(scores, best) and np.array_equal(picked, scores)
        same = same and np.array_equal(tokens[:, 0], logits.argmax(-1))
    if not same:
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
    taken = {each.name for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]
    values = session.run(names, {name: a for name, a in feeds.items() if name in taken})
    return dict(zip(names, values, strict=True))

"""Exact logits of the likeliest tokens, where the projection has weights of 4 bits.

    BEFORE                              AFTER
    hidden                              hidden
    MatMul (table), Add (bias)          MatMul (4-bit table), Add (bias)    -> rough
    |                                   TopK (rough)                        -> 64 tokens
    |                                   Gather (table, tokens), MatMul (hidden), Add (bias)
    logits                              ScatterElements (rough, tokens)     -> logits

The projection is the largest matrix of most decoders, so a token costs the time to read it; and
its rounding errors reach the logits undamped. 4 bits suffice to find the few tokens that can be
chosen, and their own rows of the float table are read beside. A table that is tied to the
embedding is in the graph already. On real Whisper weights the likeliest token of float was among
the 16 first by 4 bits in 746 of 746 places, and was the first in 88 %.
"""

from __future__ import annotations

from itertools import count

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.calibration.graphs.graph_edits import constant, name_value
from hybrid_deploy.calibration.qdq.vocabulary_projection import VocabularyProjection
from hybrid_deploy.contract import LOGITS

RESCORED_TOKENS = 64
"""Number of the tokens with exact logits; beams of up to half as many find all that they need."""


def rescore_likeliest(graph: ir.Graph, projection: VocabularyProjection) -> None:
    """Computes the exact logits of the likeliest tokens, in place, with the float32 table.

    To be called before the weight is stored in few bits. The graph must hold few other uses of
    the table than look-ups, or else it keeps the table in float32 (see `float16_embeddings`).

    Args:
        graph: the graph of the projection.
        projection: its vocabulary has more than `RESCORED_TOKENS` tokens.
    """
    rough, hidden = projection.output, projection.linear.activation
    assert rough.shape is not None, "the exporter infers all shapes"
    linear = projection.linear
    table = _table_in_graph(graph, projection.table)
    few = ir.Shape([*rough.shape[:-1], RESCORED_TOKENS])
    names = (f"rescore_{number}" for number in count())

    def add(operator: str, inputs: list[ir.Value], outputs: int = 1, **attributes: int) -> ir.Node:
        node = ir.node(operator, inputs, attributes, num_outputs=outputs, name=next(names))
        nodes.append(node)
        return node

    nodes: list[ir.Node] = []
    k = constant(graph, "rescored_tokens", np.array([RESCORED_TOKENS]))
    last = constant(graph, "rescored_axis", np.array([-1]))
    likeliest = add("TopK", [rough, k], outputs=2, axis=-1, sorted=0)
    name_value(likeliest, "rescored_rough", few)
    tokens = likeliest.outputs[1]
    tokens.name, tokens.shape, tokens.dtype = "rescored_ids", few, ir.DataType.INT64
    width = linear.weight_shape[1 - linear.channel_axis]
    rows = name_value(
        add("Gather", [table, tokens], axis=0), "rescored_rows", ir.Shape([*few, width])
    )
    column_shape = ir.Shape([*rough.shape[:-1], width, 1])
    column = name_value(add("Unsqueeze", [hidden, last]), "rescored_column", column_shape)
    product = name_value(add("MatMul", [rows, column]), "rescored_products", ir.Shape([*few, 1]))
    exact = name_value(add("Squeeze", [product, last]), "rescored_sums", few)
    if projection.bias is not None:
        biases = add("Gather", [projection.bias, tokens], axis=0)
        name_value(biases, "rescored_biases", few)
        exact = name_value(add("Add", [exact, biases.outputs[0]]), "rescored_exact", few)
    users = list(rough.uses())
    scatter = add("ScatterElements", [rough, tokens, exact], axis=-1)
    _replace(graph, rough, scatter, [use for use in users if use[0] not in nodes])
    producer = rough.producer()
    assert producer is not None, "a product or its Add"
    graph.insert_after(producer, nodes)


def _replace(
    graph: ir.Graph, rough: ir.Value, scatter: ir.Node, users: list[tuple[ir.Node, int]]
) -> None:
    """Lets the users of the rough logits, and the outputs of the graph, take the scattered ones."""
    name = str(rough.name)
    if rough.is_graph_output():
        rough.name = f"{LOGITS}_rough"
        graph.outputs[:] = [scatter.outputs[0] if out is rough else out for out in graph.outputs]
    else:
        name = f"{name}_rescored"
    name_value(scatter, name, rough.shape)
    for node, index in users:
        node.replace_input_with(index, scatter.outputs[0])


def _table_in_graph(graph: ir.Graph, table: NDArray[np.float32]) -> ir.Value:
    """Returns the embedding's table if it is the projection's too, else a new constant."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tuple(tensor.shape.numpy()) != table.shape or not value.uses():
            continue
        is_looked_up = all(user.op_type == "Gather" and not index for user, index in value.uses())
        if is_looked_up and np.array_equal(tensor.numpy(), table):
            return value
    return constant(graph, "projection_table", np.ascontiguousarray(table))

"""Embedding tables in float16: they are read a row at a time, and a row loses next to nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hybrid_deploy.calibration.graphs.graph_edits import constant, describe, drop_unused_constants

_SMALLEST_BYTES = 1 << 16
_LARGEST = float(np.finfo(np.float16).max)


def convert_embeddings(model: ir.Model) -> None:
    """Stores the large float32 tables that only Gather reads in float16, in place.

    The rows are float32 again behind the Gather. A table with numbers beyond float16 stays.
    """
    graph = model.graph
    for table in list(graph.initializers.values()):
        users = list(table.uses())
        if _is_table(table) and all(n.op_type == "Gather" and i == 0 for n, i in users):
            assert table.const_value is not None
            short = table.const_value.numpy().astype(np.float16)
            for node, index in users:
                node.replace_input_with(index, constant(graph, f"{table.name}_fp16", short))
                _widen(graph, node.outputs[0])
    drop_unused_constants(graph)


def _is_table(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype is not ir.DataType.FLOAT or not value.uses():
        return False
    if tensor.nbytes < _SMALLEST_BYTES:
        return False
    return bool(np.abs(tensor.numpy()).max() <= _LARGEST)


def _widen(graph: ir.Graph, rows: ir.Value) -> None:
    users, name, producer = list(rows.uses()), str(rows.name), rows.producer()
    assert producer is not None, "a Gather gives its rows"
    rows.name, rows.dtype = f"{name}_fp16", ir.DataType.FLOAT16
    cast = ir.node("Cast", [rows], {"to": ir.DataType.FLOAT}, name=f"{name}_cast")
    describe(cast.outputs[0], name, rows, ir.DataType.FLOAT)
    graph.insert_after(producer, cast)
    for node, index in users:
        node.replace_input_with(index, cast.outputs[0])
    if rows.is_graph_output():
        graph.outputs[:] = [cast.outputs[0] if out is rows else out for out in graph.outputs]

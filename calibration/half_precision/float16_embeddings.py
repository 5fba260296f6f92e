"""Embedding tables in float16: half the size, and every row is float32 again behind its Gather.

    BEFORE                            AFTER
    table (float32), tokens           table_fp16 (float16), tokens
    Gather                            Gather
    |                                 Cast (to float32)
    rows                              rows

The pattern matches where only Gathers use the table, the table has at least 64 KiB, and all its
numbers lie within float16. A table that is also multiplied (a tied projection) stays float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hybrid_deploy.calibration.graphs.graph_edits import constant, describe, drop_unused_constants

_MIN_TABLE_BYTES = 1 << 16
_FLOAT16_MAX = float(np.finfo(np.float16).max)


def convert_embeddings(model: ir.Model) -> None:
    """Stores the large float32 tables that only Gathers use in float16, in place."""
    graph = model.graph
    for table in list(graph.initializers.values()):
        uses = list(table.uses())
        if _is_convertible_table(table) and all(
            user.op_type == "Gather" and i == 0 for user, i in uses
        ):
            assert table.const_value is not None
            float16_array = table.const_value.numpy().astype(np.float16)
            for node, index in uses:
                node.replace_input_with(index, constant(graph, f"{table.name}_fp16", float16_array))
                _cast_rows_to_float32(graph, node.outputs[0])
    drop_unused_constants(graph)


def _is_convertible_table(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype is not ir.DataType.FLOAT or not value.uses():
        return False
    if tensor.nbytes < _MIN_TABLE_BYTES:
        return False
    return bool(np.abs(tensor.numpy()).max() <= _FLOAT16_MAX)


def _cast_rows_to_float32(graph: ir.Graph, rows: ir.Value) -> None:
    uses, name, producer = list(rows.uses()), str(rows.name), rows.producer()
    assert producer is not None, "a Gather computes the rows"
    rows.name, rows.dtype = f"{name}_fp16", ir.DataType.FLOAT16
    cast = ir.node("Cast", [rows], {"to": ir.DataType.FLOAT}, name=f"{name}_cast")
    describe(cast.outputs[0], name, rows, ir.DataType.FLOAT)
    graph.insert_after(producer, cast)
    for node, index in uses:
        node.replace_input_with(index, cast.outputs[0])
    if rows.is_graph_output():
        graph.outputs[:] = [cast.outputs[0] if out is rows else out for out in graph.outputs]

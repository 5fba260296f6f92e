"""A weight of its own for a vocabulary projection that shares the embedding's table.

    BEFORE                               AFTER
    Gather (table, token)                Gather (table, token)
    ...                                  ...
    Gemm (h, table, bias, transB=1)      MatMul (h, table_transposed), Add (bias)

A quantized projection needs a weight of its own, since the embedding stays float. ONNX Runtime
reads stored weights in MatMul and not in Gemm.
"""

from __future__ import annotations

import onnx_ir as ir

from hybrid_deploy.onnx_graphs.gemm import is_embedding, split_gemm


def untie_projections(model: ir.Model) -> None:
    """Rewrites every Gemm whose weight is also an embedding table, in place."""
    for node in list(model.graph):
        if node.op_type == "Gemm" and node.inputs[1] and is_embedding(node.inputs[1]):
            split_gemm(model.graph, node)

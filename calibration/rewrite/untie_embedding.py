"""Giving a vocabulary projection that shares its weight with the embedding a weight of its own.

In float the two share one table, and the projection is a Gemm that reads it transposed. Quantized
they part: the embedding stays float, and the projection becomes a MatMul, the form whose weight
ONNX Runtime reads in int8.
"""

from __future__ import annotations

import onnx_ir as ir

from hybrid_deploy.onnx_graphs.gemm import is_embedding, split_gemm


def untie_projections(model: ir.Model) -> None:
    """Rewrites every Gemm whose weight is an embedding table too, in place."""
    for node in list(model.graph):
        if node.op_type == "Gemm" and node.inputs[1] and is_embedding(node.inputs[1]):
            split_gemm(model.graph, node)

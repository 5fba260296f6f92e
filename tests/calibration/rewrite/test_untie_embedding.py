"""A tied vocabulary projection gets a weight of its own before it is quantized."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from hybrid_deploy.calibration.recipes import DecoderForm
from hybrid_deploy.calibration.rewrite.decoder import quantize_decoder
from hybrid_deploy.calibration.rewrite.untie_embedding import untie_projections
from hybrid_deploy.contract import GraphRole

VOCABULARY, WIDTH = 12, 8


def tied_model() -> ir.Model:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
    bias = rng.standard_normal(VOCABULARY).astype(np.float32)
    token = ir.val("token", dtype=ir.DataType.INT64, shape=["batch"])
    weight = ir.val("table", const_value=ir.tensor(table, name="table"))
    offset = ir.val("bias", const_value=ir.tensor(bias, name="bias"))
    gather = ir.node("Gather", [weight, token], name="embedding")
    gemm = ir.node("Gemm", [gather.outputs[0], weight, offset], {"transB": 1}, name="head")
    logits = gemm.outputs[0]
    logits.name, logits.dtype, logits.shape = "logits", ir.DataType.FLOAT, ir.Shape(["batch", 12])
    graph = ir.Graph(
        [token], [logits], nodes=[gather, gemm], initializers=[weight, offset],
        opset_imports={"": 24}, name="step",
    )  # fmt: skip
    return ir.Model(graph, ir_version=10)


def logits_of(model: ir.Model) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    return np.asarray(session.run(None, {"token": np.arange(VOCABULARY)})[0])


def test_a_tied_projection_gets_its_own_int8_weight() -> None:
    model = tied_model()
    before = logits_of(model)
    untie_projections(model)
    quantize_decoder({GraphRole.STEP: model}, DecoderForm.INT8_WEIGHTS)
    operators = [node.op_type for node in model.graph]
    assert "Gemm" not in operators
    assert "DequantizeLinear" in operators
    assert model.graph.initializers["table"].dtype is ir.DataType.FLOAT
    assert model.graph.initializers["table_transposed_int8"].shape == (WIDTH, VOCABULARY)
    after = logits_of(model)
    assert 0 < np.abs(after - before).max() < 0.1

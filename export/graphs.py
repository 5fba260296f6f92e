"""From a plan to the three ONNX graphs of a variant, with the contract's names."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch
from torch import Tensor, nn

from hybrid_deploy.contract import (
    BATCH_DIM,
    LAST,
    LENGTH_DIM,
    LOGITS,
    POSITION,
    TOKEN,
    TOKENS,
    GraphRole,
    next_cache,
)
from hybrid_deploy.export.dims import DynamicAxes, dim_names, dim_of
from hybrid_deploy.export.incremental import (
    EncoderGraph,
    PrefillGraph,
    StepGraph,
    cache_example,
    cache_names,
    memory_names,
)
from hybrid_deploy.export.model import EncodePart
from hybrid_deploy.export.onnx_lowering import onnx_from_torch, rename_output_dims
from hybrid_deploy.export.plan import Plan


def lower(
    model: nn.Module,
    plan: Plan,
    inputs: Mapping[str, Tensor],
    dynamic: DynamicAxes,
    opset: int,
) -> dict[GraphRole, ir.Model]:
    """Lowers a plan to its three graphs.

    Args:
        model: has `encode` and `decode`.
        plan: the analysed decoder.
        inputs: example inputs of the encoder, batch of two.
        dynamic: the varying axes of those inputs besides the batch.
        opset: version of the ONNX operator set.

    Raises:
        ExportError: an operator has no translation to ONNX.
    """
    memory = dict(zip(memory_names(plan), plan.memory, strict=True))
    names = dim_names(plan)
    shapes = {name: [dim_of(size, names) for size in plan.shape(n)] for name, n in memory.items()}
    encoder = EncoderGraph(EncodePart(model), plan).eval()
    with torch.no_grad():
        tensors = dict(zip(memory, encoder(*inputs.values()), strict=True))
    encoder_dynamic = {
        name: {0: BATCH_DIM} | {axis: a.name for axis, a in dynamic.get(name, {}).items()}
        for name in inputs
    }
    encoder_graph = onnx_from_torch(encoder, inputs, list(memory), encoder_dynamic, opset)
    rename_output_dims(encoder_graph, shapes)
    caches = dict(zip(cache_names(plan), cache_example(plan, batch=2), strict=True))
    decoder_dynamic = {
        TOKEN: {0: BATCH_DIM},
        TOKENS: {0: BATCH_DIM, 1: LENGTH_DIM},
        POSITION: {0: BATCH_DIM},
        LAST: {0: BATCH_DIM},
        **{n: {a: d for a, d in enumerate(s) if isinstance(d, str)} for n, s in shapes.items()},
        **{name: {0: BATCH_DIM} for name in caches},
    }
    outputs = [LOGITS, *(next_cache(name) for name in caches)]
    fed = tensors | caches
    position, last = torch.tensor([0, 0]), torch.tensor([2, 1])
    step_inputs = {TOKEN: torch.tensor([1, 1]), POSITION: position, **fed}
    prefill_inputs = {TOKENS: torch.ones(2, 3, dtype=torch.int64), POSITION: position, LAST: last}
    step = onnx_from_torch(StepGraph(plan), step_inputs, outputs, decoder_dynamic, opset)
    prefill = onnx_from_torch(
        PrefillGraph(plan), prefill_inputs | fed, outputs, decoder_dynamic, opset
    )
    return {GraphRole.ENCODER: encoder_graph, GraphRole.PREFILL: prefill, GraphRole.STEP: step}

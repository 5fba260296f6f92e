"""Lowers a decoder plan to the three ONNX graphs of a variant, with the contract's names."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch
from torch import Tensor, nn

from hybrid_deploy.contract import (
    BATCH_DIM,
    LAST,
    LENGTH_DIM,
    NATIVE_OPSET,
    POSITION,
    TOKEN,
    TOKENS,
    GraphRole,
    next_cache,
)
from hybrid_deploy.export.lowering.decoder_modules import (
    EncoderGraph,
    PrefillGraph,
    StepGraph,
    cache_names,
    encoder_output_names,
    head_names,
    memory_names,
    split_outputs,
)
from hybrid_deploy.export.lowering.dim_ranges import (
    dim_names,
    input_dims,
    shape_of,
)
from hybrid_deploy.export.lowering.torch_to_onnx import name_dims, onnx_from_torch
from hybrid_deploy.export.model.dynamic_axes import DynamicAxes
from hybrid_deploy.export.model.interface import EncodePart
from hybrid_deploy.export.plan.plan import DecodePlan
from hybrid_deploy.export.trace.size_guards import DeclaredSizes


def lower_plan(
    model: nn.Module,
    plan: DecodePlan,
    inputs: Mapping[str, Tensor],
    dynamic: DynamicAxes,
    opset: int,
    declared: DeclaredSizes | None = None,
) -> dict[GraphRole, ir.Model]:
    """Returns the graphs of encoder, prefill and step.

    Args:
        model: a module with the methods `encode` and `decode`.
        plan: the analysed decoder.
        inputs: example inputs of the encoder, a batch of two.
        dynamic: the varying axes of those inputs besides the batch.
        opset: version of the ONNX operator set.
        declared: the sizes for which the graphs have to hold; None checks no guard of the traces.

    Raises:
        ExportError: an operator has no translation to ONNX.
        UnsupportedModelError: the trace fixes a size that varies, or a Python branch on a size
            takes another side at a declared size.
    """
    names = dim_names(plan)
    cached_values = {
        **dict(zip(memory_names(plan), plan.memory, strict=True)),
        **dict(zip(cache_names(plan), plan.caches, strict=True)),
    }
    shapes = {name: shape_of(plan, value, names) for name, value in cached_values.items()}
    encoder = EncoderGraph(EncodePart(model), plan).eval()
    with torch.no_grad():
        memory, caches = split_outputs(plan, encoder(*inputs.values()), batch=2)
    encoder_dynamic = input_dims(inputs, dynamic)
    encoder_graph = onnx_from_torch(
        encoder,
        inputs,
        encoder_output_names(plan),
        encoder_dynamic,
        opset,
        declared,
        "encode()",
    )
    name_dims(encoder_graph, shapes)
    tensors = zip(cached_values, (*memory, *caches), strict=True)
    feeds = {name: value.contiguous() for name, value in tensors}
    step, prefill = _lower_decoder(plan, feeds, shapes, opset, declared)
    return {GraphRole.ENCODER: encoder_graph, GraphRole.PREFILL: prefill, GraphRole.STEP: step}


def _lower_decoder(
    plan: DecodePlan,
    feeds: Mapping[str, Tensor],
    shapes: Mapping[str, list[int | str]],
    opset: int,
    declared: DeclaredSizes | None,
) -> tuple[ir.Model, ir.Model]:
    """Returns the graphs of step and prefill; `feeds` are example memory tensors and caches."""
    dynamic = {
        TOKEN: {0: BATCH_DIM},
        TOKENS: {0: BATCH_DIM, 1: LENGTH_DIM},
        POSITION: {0: BATCH_DIM},
        LAST: {0: BATCH_DIM},
        **{n: {a: d for a, d in enumerate(s) if isinstance(d, str)} for n, s in shapes.items()},
    }
    outputs = [*head_names(plan), *(next_cache(name) for name in cache_names(plan))]
    position, last = torch.tensor([0, 0]), torch.tensor([2, 1])
    step_inputs = {TOKEN: torch.tensor([1, 1]), POSITION: position, **feeds}
    prefill_inputs = {TOKENS: torch.ones(2, 3, dtype=torch.int64), POSITION: position, LAST: last}
    native = opset >= NATIVE_OPSET
    step, prefill = (
        onnx_from_torch(graph, arguments, outputs, dynamic, opset, declared, "decode()")
        for graph, arguments in (
            (StepGraph(plan, native=native), step_inputs),
            (PrefillGraph(plan, native=native), {**prefill_inputs, **feeds}),
        )
    )
    for graph in (step, prefill):
        name_dims(graph, {next_cache(name): shapes[name] for name in cache_names(plan)})
    return step, prefill

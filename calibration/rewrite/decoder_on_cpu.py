"""The decoder's graphs for ONNX Runtime on a CPU alone: every pass that makes a token cheaper.

A token costs what is read for it, and a little for every operator. What each pass saves was
measured with `make bench`; README has the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from hybrid_deploy.calibration.graphs.graph_edits import drop_unused_constants
from hybrid_deploy.calibration.onnxruntime_cpu.exact_logits import with_exact_logits
from hybrid_deploy.calibration.onnxruntime_cpu.int8_cross_attention import (
    quantize_cross_attention_memory,
)
from hybrid_deploy.calibration.onnxruntime_cpu.qkv_fusion import fuse_qkv
from hybrid_deploy.calibration.onnxruntime_cpu.self_attention import fuse_self_attention
from hybrid_deploy.calibration.onnxruntime_cpu.skip_layer_norm import fuse_skip_layer_norm
from hybrid_deploy.calibration.onnxruntime_cpu.two_stage_projection import two_stage_projection
from hybrid_deploy.calibration.recipes import DecoderForm
from hybrid_deploy.contract import GraphRole


def split_projection(graphs: MutableMapping[GraphRole, ir.Model], form: DecoderForm) -> None:
    """Lets step and prefill return rough logits, in place; adds the graph that refines them.

    Args:
        graphs: all of a variant, in float32.
        form: FLOAT_CPU keeps the tokens of float, others do so most likely.
    """
    decoder = {role: graphs[role] for role in _decoder_roles(graphs)}
    refining = two_stage_projection(decoder, exact=form is DecoderForm.FLOAT_CPU)
    if refining is not None:
        graphs[GraphRole.REFINE] = refining


def rewrite_decoder_for_cpu(
    graphs: Mapping[GraphRole, ir.Model],
    form: DecoderForm,
    typical_sizes: Mapping[str, int] | None = None,
) -> ir.Model:
    """Rewrites the graphs of a variant in place.

    Args:
        graphs: all of a variant, their numbers in the form already.
        form: FLOAT_CPU keeps the tokens of float; others may round the memory too.
        typical: sizes of symbolic dimensions.

    Returns:
        The step for beam searches, which need all logits true, and attend to a memory for several
        sequences at once.
    """
    step, refining = graphs[GraphRole.STEP], graphs.get(GraphRole.REFINE)
    searched = step.clone() if refining is None else with_exact_logits(step, refining)
    if form is not DecoderForm.FLOAT_CPU:
        quantize_cross_attention_memory(graphs, typical_sizes or {}, searched)
    models = [*(graphs[role] for role in _decoder_roles(graphs)), searched]
    for model in models:
        fuse_qkv(model)
    for model in (step, searched):
        fuse_self_attention(model)
        fuse_skip_layer_norm(model)
    for model in models:
        RemoveUnusedNodesPass()(model)
        drop_unused_constants(model.graph)
    return searched


def _decoder_roles(graphs: Mapping[GraphRole, ir.Model]) -> list[GraphRole]:
    return [role for role in (GraphRole.STEP, GraphRole.PREFILL) if role in graphs]

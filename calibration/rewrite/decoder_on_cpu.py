"""The decoder for ONNX Runtime on a CPU alone: all passes that shorten the time of a token.

    split_projection                    in float; step, prefill: logits -> approximate logits,
                                        error bound; refine graph: exact logits of some tokens
    rewrite_decoder_for_cpu             a copy of the step with exact logits, for beam searches
        quantize_cross_attention_memory     memory in 8 bits
        fuse_qkv                            one product for query, key and value
        fuse_self_attention                 GroupQueryAttention (both forms of the step)
        fuse_skip_layer_norm                SkipLayerNormalization (both forms of the step)

A token takes the time to read its weights and memory, and a little for every operator. `make bench`
measures what each pass saves; README holds the numbers.
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


def split_projection(graphs: MutableMapping[GraphRole, ir.Model]) -> None:
    """Makes step and prefill return approximate logits, in place, and adds the refine graph.

    Graphs without a large vocabulary projection are left as they are.

    Args:
        graphs: all float32 graphs of a variant.
    """
    decoder = {role: graphs[role] for role in _decoder_roles(graphs)}
    refine_graph = two_stage_projection(decoder)
    if refine_graph is not None:
        graphs[GraphRole.REFINE] = refine_graph


def rewrite_decoder_for_cpu(
    graphs: Mapping[GraphRole, ir.Model],
    form: DecoderForm,
    typical_sizes: Mapping[str, int] | None = None,
) -> ir.Model:
    """Rewrites the graphs of a variant to operators of ONNX Runtime's CPU kernels, in place.

    Args:
        graphs: all graphs of a variant, with weights already in the form.
        form: the decoder's form; all but FLOAT_CPU may store the memory in 8 bits.
        typical_sizes: typical sizes of the symbolic dimensions, by name.

    Returns:
        A step with exact logits, from which the beam step is made: a beam search needs the exact
        logits of all tokens.
    """
    step, refine_graph = graphs[GraphRole.STEP], graphs.get(GraphRole.REFINE)
    exact_step = step.clone() if refine_graph is None else with_exact_logits(step, refine_graph)
    if form is not DecoderForm.FLOAT_CPU:
        quantize_cross_attention_memory(graphs, typical_sizes or {}, exact_step)
    models = [*(graphs[role] for role in _decoder_roles(graphs)), exact_step]
    for model in models:
        fuse_qkv(model)
    for model in (step, exact_step):
        fuse_self_attention(model)
        fuse_skip_layer_norm(model)
    for model in models:
        RemoveUnusedNodesPass()(model)
        drop_unused_constants(model.graph)
    return exact_step


def _decoder_roles(graphs: Mapping[GraphRole, ir.Model]) -> list[GraphRole]:
    return [role for role in (GraphRole.STEP, GraphRole.PREFILL) if role in graphs]

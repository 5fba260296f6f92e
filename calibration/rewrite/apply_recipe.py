"""A recipe applied to the float graphs of a variant.

The rewrites, in this order:

    encoder      16-bit floats, or 8-bit numbers with QDQ pairs, or operators for the CPU
    decoder      for stored weights: a weight of its own for a projection tied to the embedding
                 float for the CPU: the two-stage projection, which adds the refine graph
                 16-bit floats, or stored weights (with QDQ pairs in some forms)
    memory       a Cast where encoder and decoder have different float types
    decoder      for the CPU: operators of ONNX Runtime
    beam_step    made from a step with exact logits
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from typing import TypeAlias

import onnx_ir as ir

from hybrid_deploy.calibration.half_precision.float16 import convert_to_half
from hybrid_deploy.calibration.half_precision.float16_range import BFLOAT16, FLOAT16, HalfType
from hybrid_deploy.calibration.onnxruntime_cpu.encoder_fusions import fuse_encoder_operators
from hybrid_deploy.calibration.recipes import DecoderForm, EncoderForm, Recipe
from hybrid_deploy.calibration.rewrite.decoder import DecoderRounding, quantize_decoder
from hybrid_deploy.calibration.rewrite.decoder_on_cpu import (
    rewrite_decoder_for_cpu,
    split_projection,
)
from hybrid_deploy.calibration.rewrite.encoder import quantize_encoder
from hybrid_deploy.calibration.rewrite.memory_dtype import match_memory_dtype
from hybrid_deploy.calibration.rewrite.untie_embedding import untie_projections
from hybrid_deploy.calibration.statistics.scales import Scales
from hybrid_deploy.calibration.statistics.second_moments import WeightMoments
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.onnx_graphs.beam_step import add_beam_step

Graphs: TypeAlias = MutableMapping[GraphRole, ir.Model]
_NamesByGraph: TypeAlias = Mapping[GraphRole, Collection[str]]

_HALF_TYPES: Mapping[str, HalfType] = {"fp16": FLOAT16, "bf16": BFLOAT16}


def apply_recipe(
    recipe: Recipe,
    graphs: Graphs,
    scales: Scales | None,
    in_float: _NamesByGraph | None = None,
    overflowing: _NamesByGraph | None = None,
    typical_sizes: Mapping[str, int] | None = None,
    moments: WeightMoments | None = None,
    in_8_bits: _NamesByGraph | None = None,
) -> None:
    """Rewrites the graphs of a variant in place, and adds the refine graph and the beam step.

    Args:
        recipe: the form of each component.
        graphs: the float32 graphs by role, as `prepared_graphs` returns them.
        scales: ranges and channel statistics of the activations; required if the recipe needs
            scales.
        in_float: names of the operators (`Linear.name`) that stay float, by graph.
        overflowing: names of the tensors that overflow float16, by graph.
        typical_sizes: typical sizes of the symbolic dimensions, by name; forms for the CPU decide
            by them whether 8-bit memory is worth it.
        moments: second moments of the inputs of the decoder's weights, for int4 weights.
        in_8_bits: names of the decoder's operators that have 8 bits in an int4 form, by graph.

    Raises:
        CalibrationError: an activation has no range, or a weight lies beyond the precision's range.
    """
    encoder = graphs[GraphRole.ENCODER]
    decoder: Graphs = {r: model for r, model in graphs.items() if r is not GraphRole.ENCODER}
    _rewrite_encoder(recipe, encoder, scales, in_float or {}, overflowing or {})
    rounding = DecoderRounding(scales, moments, in_float or {}, in_8_bits or {})
    _rewrite_decoder(recipe, graphs, decoder, rounding, overflowing or {})
    match_memory_dtype(encoder, decoder)
    exact_step = None
    if recipe.decoder.is_for_cpu:
        exact_step = rewrite_decoder_for_cpu(graphs, recipe.decoder, typical_sizes)
    add_beam_step(graphs, exact_step)


def _rewrite_encoder(
    recipe: Recipe,
    encoder: ir.Model,
    scales: Scales | None,
    in_float: _NamesByGraph,
    overflowing: _NamesByGraph,
) -> None:
    role = GraphRole.ENCODER
    if recipe.encoder.value in _HALF_TYPES:
        _convert_graph_to_half(encoder, role, recipe.encoder.value, overflowing)
    elif recipe.encoder is EncoderForm.FLOAT_CPU:
        fuse_encoder_operators(encoder)
    elif recipe.encoder is not EncoderForm.FLOAT:
        assert scales is not None, f"an {recipe.encoder.value} encoder needs scales"
        quantize_encoder(encoder, scales, recipe.encoder, in_float.get(role, ()))
        if recipe.floats in _HALF_TYPES:
            _convert_graph_to_half(encoder, role, recipe.floats, overflowing)


def _rewrite_decoder(
    recipe: Recipe,
    graphs: Graphs,
    decoder: Mapping[GraphRole, ir.Model],
    rounding: DecoderRounding,
    overflowing: _NamesByGraph,
) -> None:
    if recipe.decoder.value in _HALF_TYPES:
        for role, model in decoder.items():
            _convert_graph_to_half(model, role, recipe.decoder.value, overflowing)
    elif recipe.decoder.portable is not DecoderForm.FLOAT:
        for model in decoder.values():
            untie_projections(model)
        quantize_decoder(decoder, recipe.decoder, rounding, recipe.block_size)
        if recipe.floats in _HALF_TYPES:
            for role, model in decoder.items():
                _convert_graph_to_half(model, role, recipe.floats, overflowing)
    elif recipe.decoder is DecoderForm.FLOAT_CPU:
        split_projection(graphs)


def _convert_graph_to_half(
    model: ir.Model, role: GraphRole, precision: str, overflowing: _NamesByGraph
) -> None:
    half = _HALF_TYPES[precision]
    # bfloat16 has float32's range, so nothing overflows it
    convert_to_half(model, role, half, overflowing.get(role, ()) if half is FLOAT16 else ())

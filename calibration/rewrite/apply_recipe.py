"""A recipe applied to the float graphs of a variant."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from typing import TypeAlias

import onnx_ir as ir

from hybrid_deploy.calibration.half_precision.float16 import convert_to_half
from hybrid_deploy.calibration.half_precision.float16_range import BFLOAT16, FLOAT16, HalfType
from hybrid_deploy.calibration.onnxruntime_cpu.encoder_fusions import fuse_encoder_operators
from hybrid_deploy.calibration.recipes import DecoderForm, EncoderForm, Recipe
from hybrid_deploy.calibration.rewrite.decoder import quantize_decoder
from hybrid_deploy.calibration.rewrite.decoder_on_cpu import (
    rewrite_decoder_for_cpu,
    split_projection,
)
from hybrid_deploy.calibration.rewrite.encoder import quantize_encoder
from hybrid_deploy.calibration.rewrite.memory_dtype import match_memory_dtype
from hybrid_deploy.calibration.rewrite.untie_embedding import untie_projections
from hybrid_deploy.calibration.statistics.scales import Scales
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.onnx_graphs.beam_step import add_beam_step

Graphs: TypeAlias = MutableMapping[GraphRole, ir.Model]

_SHORT: Mapping[str, HalfType] = {"fp16": FLOAT16, "bf16": BFLOAT16}


def apply_recipe(
    recipe: Recipe,
    graphs: Graphs,
    scales: Scales | None,
    in_float: Mapping[GraphRole, Collection[str]] | None = None,
    overflowing: Mapping[GraphRole, Collection[str]] | None = None,
    typical_sizes: Mapping[str, int] | None = None,
) -> None:
    """Rewrites the graphs of a variant in place, and adds those that a form has besides.

    Args:
        recipe: what becomes of each component.
        graphs: float32, prepared.
        scales: what calibration learned; needed if the recipe needs scales.
        kept: names of the operators (`Linear.name`) that stay float, by graph.
        wide: names of tensors that overflow float16, by graph.
        typical: sizes of symbolic dimensions, for forms that ask whether they pay.

    Raises:
        CalibrationError: an activation has no range, or a weight does not fit the precision.
    """
    decoder: Graphs = {r: model for r, model in graphs.items() if r is not GraphRole.ENCODER}
    encoder = graphs[GraphRole.ENCODER]
    if recipe.encoder.value in _SHORT:
        _shorten(encoder, GraphRole.ENCODER, recipe.encoder.value, overflowing)
    elif recipe.encoder is EncoderForm.FLOAT_CPU:
        fuse_encoder_operators(encoder)
    elif recipe.encoder is not EncoderForm.FLOAT:
        assert scales is not None, f"an {recipe.encoder.value} encoder was calibrated"
        quantize_encoder(
            encoder, scales, recipe.encoder, (in_float or {}).get(GraphRole.ENCODER, ())
        )
        if recipe.floats in _SHORT:
            _shorten(encoder, GraphRole.ENCODER, recipe.floats, overflowing)
    if recipe.decoder.value in _SHORT:
        for role, model in decoder.items():
            _shorten(model, role, recipe.decoder.value, overflowing)
    elif recipe.decoder.portable is not DecoderForm.FLOAT:
        for model in decoder.values():
            untie_projections(model)
        if recipe.decoder.is_for_cpu:
            split_projection(graphs, recipe.decoder)
        quantize_decoder(decoder, scales, recipe.decoder.portable, in_float, recipe.block_size)
        if recipe.floats in _SHORT:
            for role, model in decoder.items():
                _shorten(model, role, recipe.floats, overflowing)
    elif recipe.decoder is DecoderForm.FLOAT_CPU:
        split_projection(graphs, recipe.decoder)
    match_memory_dtype(encoder, decoder)
    searched = None
    if recipe.decoder.is_for_cpu:
        searched = rewrite_decoder_for_cpu(graphs, recipe.decoder, typical_sizes)
    add_beam_step(graphs, searched)


def _shorten(
    model: ir.Model,
    role: GraphRole,
    form: str,
    wide: Mapping[GraphRole, Collection[str]] | None,
) -> None:
    overflowing = (wide or {}).get(role, ()) if _SHORT[form] is FLOAT16 else ()
    convert_to_half(model, role, _SHORT[form], overflowing)

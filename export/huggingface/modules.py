"""Replaces modules of Hugging Face decoders that read all tokens at once (replacements/)."""

from __future__ import annotations

from torch import nn

from hybrid_deploy.export.huggingface.replacements.attentions import (
    AdditiveMask,
    CrossAttentionWithoutBias,
    FSMTAttention,
    fixed_distances,
    fused_attention,
    umt5_cross_layer,
    unpadded_heads,
)
from hybrid_deploy.export.huggingface.replacements.experts import limited_experts, unlimited_experts
from hybrid_deploy.export.huggingface.replacements.positions import (
    FSMTPositions,
    RobertaEmbeddings,
    SinusoidalPositions,
)
from hybrid_deploy.export.model.substitution import Factory, Model, substitute


def with_incremental_modules(model: Model, encoder: nn.Module | None = None) -> Model:
    """Returns a copy of a model in which no decoder module reads all tokens at once.

    Args:
        model: a Hugging Face model, or a module that holds some; it does not change.
        encoder: part of the model whose modules may read all tokens at once.
    """
    encoder_modules = set() if encoder is None else set(encoder.modules())
    factories = {
        path: factory
        for path, module in model.named_modules()
        if (factory := _factory_of(type(module), module in encoder_modules)) is not None
    }
    return substitute(model, factories)


def _factory_of(module_class: type[nn.Module], in_encoder: bool) -> Factory | None:
    """Returns the factory of a module's replacement; None if the module stays."""
    name = module_class.__name__
    if module_class.__module__.endswith(_FSMT):
        name = f"{_FSMT}.{name}"
    return (_ENCODER_FACTORIES if in_encoder else _FACTORIES).get(name)


_FSMT = "modeling_fsmt"  # its classes have names that other models have too

_FACTORIES: dict[str, Factory] = {
    **dict.fromkeys(
        ("CamembertEmbeddings", "RobertaEmbeddings", "XLMRobertaEmbeddings"), RobertaEmbeddings
    ),
    **dict.fromkeys(
        (
            "M2M100SinusoidalPositionalEmbedding",
            "SeamlessM4TSinusoidalPositionalEmbedding",
            "SeamlessM4Tv2SinusoidalPositionalEmbedding",
            "Speech2TextSinusoidalPositionalEmbedding",
            "SpeechT5SinusoidalPositionalEmbedding",
            "TrOCRSinusoidalPositionalEmbedding",
        ),
        SinusoidalPositions,
    ),
    **dict.fromkeys(
        (
            "LongT5LayerCrossAttention",
            "MT5LayerCrossAttention",
            "Pix2StructTextLayerCrossAttention",
            "SwitchTransformersLayerCrossAttention",
            "T5LayerCrossAttention",
        ),
        CrossAttentionWithoutBias,
    ),
    **dict.fromkeys(("MvpAttention", "SpeechT5Attention", "TrOCRAttention"), fused_attention),
    **dict.fromkeys(("MoonshineAttention", "MoonshineStreamingAttention"), unpadded_heads),
    "SwitchTransformersSparseMLP": unlimited_experts,
    "UMT5LayerCrossAttention": umt5_cross_layer,
    f"{_FSMT}.Attention": FSMTAttention,
    f"{_FSMT}.SinusoidalPositionalEmbedding": FSMTPositions,
}
"""Factory of the replacement, by the class name of a module outside the encoder."""

_ENCODER_FACTORIES: dict[str, Factory] = {
    "BigBirdPegasusSelfAttention": AdditiveMask,
    "GotOcr2VisionAttention": fixed_distances,
    "SwitchTransformersSparseMLP": limited_experts,
}
"""Factory of the replacement, by the class name of a module of the encoder."""

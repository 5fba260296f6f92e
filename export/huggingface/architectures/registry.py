"""Finds the adapter of a model."""

from __future__ import annotations

from hybrid_deploy.export.huggingface.architectures.base import HuggingFaceModel
from hybrid_deploy.export.huggingface.architectures.image_grids import PlacedFeatures
from hybrid_deploy.export.huggingface.architectures.images import (
    CaptionFromImage,
    FormulaFromImage,
    PlacedPatches,
)
from hybrid_deploy.export.huggingface.architectures.language_interfaces import (
    FixedSound,
    ImageWithoutTokens,
    MarkedPlaces,
    QueriesBeforeText,
)
from hybrid_deploy.export.huggingface.architectures.language_models import FeaturesBeforeText
from hybrid_deploy.export.huggingface.architectures.prompted_images import (
    ImageInPrompt,
    QueriesInPrompt,
    SeenWholePrompt,
)
from hybrid_deploy.export.huggingface.architectures.speech import (
    MaskWithMemory,
    SpeechEncoderAndDecoder,
    SpeechWithPrenets,
    SubsampledMask,
    SubsampledSpeech,
    WholeFrames,
)
from hybrid_deploy.export.huggingface.architectures.texts import (
    BatchSecond,
    MaskByLayerType,
    TextInBlocks,
)
from hybrid_deploy.export.huggingface.architectures.vision_towers import (
    FixedTiles,
    PackedTiles,
    SelectedLayers,
)

ADAPTERS: tuple[type[HuggingFaceModel], ...] = (
    MaskWithMemory,
    SubsampledMask,
    ImageInPrompt,
    QueriesInPrompt,
    SeenWholePrompt,
    PlacedPatches,
    CaptionFromImage,
    FormulaFromImage,
    SubsampledSpeech,
    SpeechEncoderAndDecoder,
    SpeechWithPrenets,
    WholeFrames,
    TextInBlocks,
    BatchSecond,
    MaskByLayerType,
    QueriesBeforeText,
    MarkedPlaces,
    ImageWithoutTokens,
    FixedSound,
    PlacedFeatures,
    SelectedLayers,
    PackedTiles,
    FixedTiles,
    FeaturesBeforeText,
    HuggingFaceModel,
)
"""Adapter classes; the first one that fits a model adapts it."""

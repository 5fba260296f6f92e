"""Finds the adapter of a model."""

from __future__ import annotations

from hybrid_deploy.export.huggingface.architectures.base import HuggingFaceModel
from hybrid_deploy.export.huggingface.architectures.images import (
    CaptionFromImage,
    FormulaFromImage,
    PlacedPatches,
)
from hybrid_deploy.export.huggingface.architectures.prompted_images import ImageInPrompt
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

ADAPTERS: tuple[type[HuggingFaceModel], ...] = (
    MaskWithMemory,
    SubsampledMask,
    ImageInPrompt,
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
    HuggingFaceModel,
)
"""Adapter classes; the first one that fits a model adapts it."""

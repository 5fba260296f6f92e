"""Bundles on disk: the manifest, the files that it names, and their hashes.

A path enters `open_bundle` and a verified `Bundle` leaves; `staged_bundle` and `staged_variant` in
`bundle.py` write one. A device opens bundles too, so nothing here may import PyTorch or ONNX. An
export job describes its model with the structs below, which is why this room re-exports them.
"""

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.input_specs import (
    ArrayInput,
    AudioInput,
    EncoderInput,
    FilterBank,
    FramesInput,
    ImageInput,
    LogMel,
    PatchesInput,
    PixelsInput,
    Preprocess,
    TextInput,
    TilesInput,
    Waveform,
)
from hybrid_deploy.bundle.manifest import (
    DimRange,
    GenerationDefaults,
    GoldenSample,
    Manifest,
    Precision,
    Tokenizer,
    Variant,
    Vocabulary,
)
from hybrid_deploy.bundle.pixel_steps import (
    AlignLongAxis,
    CenterCrop,
    CropMargin,
    Pad,
    Resize,
    ResizeLongestEdge,
    ResizeShortestEdge,
    ResizeToGrid,
    ResizeToTiles,
    ResizeWithin,
    Thumbnail,
)
from hybrid_deploy.bundle.signature import Trust
from hybrid_deploy.bundle.speech.speech_tokens import SpeechTokens

__all__ = [
    "AlignLongAxis",
    "ArrayInput",
    "AudioInput",
    "Bundle",
    "CenterCrop",
    "CropMargin",
    "DimRange",
    "EncoderInput",
    "FilterBank",
    "FramesInput",
    "GenerationDefaults",
    "GoldenSample",
    "ImageInput",
    "LogMel",
    "Manifest",
    "Pad",
    "PatchesInput",
    "PixelsInput",
    "Precision",
    "Preprocess",
    "Resize",
    "ResizeLongestEdge",
    "ResizeShortestEdge",
    "ResizeToGrid",
    "ResizeToTiles",
    "ResizeWithin",
    "SpeechTokens",
    "TextInput",
    "Thumbnail",
    "TilesInput",
    "Tokenizer",
    "Trust",
    "Variant",
    "Vocabulary",
    "Waveform",
    "open_bundle",
]

"""The deployable folder: its manifest, its files and their hashes.

`open_bundle` reads a bundle; `staged_bundle` and `staged_variant` in `bundle.py` write one. A
device opens what a workstation wrote, so nothing here needs more than msgspec. What an export job
says of its model is imported from here.
"""

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.input_specs import (
    AlignLongAxis,
    ArrayInput,
    AudioInput,
    CenterCrop,
    CropMargin,
    EncoderInput,
    FilterBank,
    FramesInput,
    ImageInput,
    LogMel,
    Pad,
    PatchesInput,
    PixelsInput,
    Preprocess,
    Resize,
    ResizeShortestEdge,
    ResizeWithin,
    TextInput,
    Thumbnail,
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
    "ResizeShortestEdge",
    "ResizeWithin",
    "TextInput",
    "Thumbnail",
    "Tokenizer",
    "Variant",
    "Vocabulary",
    "Waveform",
    "open_bundle",
]

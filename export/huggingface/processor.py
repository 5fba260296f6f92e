"""Translates a Hugging Face image processor or feature extractor to an input of a bundle."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import transformers
from PIL import Image

from hybrid_deploy.bundle.input_specs import (
    AudioInput,
    EncoderInput,
    FilterBank,
    LogMel,
    PatchesInput,
    PixelsInput,
    TilesInput,
    Waveform,
)
from hybrid_deploy.bundle.pixel_steps import (
    AlignLongAxis,
    CenterCrop,
    CropMargin,
    Pad,
    PixelStep,
    Resample,
    Resize,
    ResizeLongestEdge,
    ResizeShortestEdge,
    ResizeToGrid,
    ResizeToTiles,
    ResizeWithin,
    Thumbnail,
)
from hybrid_deploy.errors import ExportError, UnsupportedModelError
from hybrid_deploy.export.huggingface.folder import ModelFolder
from hybrid_deploy.runtime.preprocess.hf_image_processor import after_steps, grid_size

PIXELS, PATCHES = "pixel_values", "flattened_patches"
FEATURES, WAVEFORM = "input_features", "input_values"
MASK = "attention_mask"
_RESAMPLE: tuple[Resample, ...] = (
    "nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"
)  # fmt: skip
_KALDI_HOP_S = 0.010
_MOONSHINE_STRIDE = 4  # of two convolutions behind the frames
_MOST_SECONDS = 30.0  # a graph for longer sound takes much memory

ProcessorSettings = Mapping[str, Any]
"""Settings of an image processor or feature extractor, by name."""


def input_of(folder: ModelFolder) -> EncoderInput | None:
    """Returns the encoder input of images or audio; None if the folder has no processor.

    Raises:
        UnsupportedModelError: the processor, or one of its settings, is not supported.
    """
    settings = processor_settings(folder)
    if settings is None:
        return None
    name = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    kind = name.removesuffix("Fast").removesuffix("Pil")
    if kind in _AUDIO:
        return _AUDIO[kind](folder, _with_defaults(kind, settings))
    kind = kind.removesuffix("FeatureExtractor").removesuffix("ImageProcessor")
    if kind not in _IMAGES:
        supported = ", ".join((*_IMAGES, *_AUDIO))
        spec = "an AudioInput" if name.endswith("FeatureExtractor") else "a PixelsInput"
        raise UnsupportedModelError(
            f"{folder.path} has a processor {name or 'without a type'}; known are {supported}. "
            f"Describe its steps with {spec}, or give arrays with an ArrayInput"
        )
    return _IMAGES[kind](folder, _with_defaults(f"{kind}ImageProcessor", settings))


def processor_settings(folder: ModelFolder) -> ProcessorSettings | None:
    """Returns the settings of the image processor or feature extractor; None without a file."""
    combined = folder.read("processor_config.json") or {}
    parts = (combined.get("image_processor"), combined.get("feature_extractor"))
    nested = next((part for part in parts if part), None)
    return nested or folder.read("preprocessor_config.json")


def _with_defaults(kind: str, settings: ProcessorSettings) -> ProcessorSettings:
    """Returns settings completed with the defaults of their class."""
    processor_class: Any = getattr(transformers, f"{kind}Pil", None) or getattr(transformers, kind)
    complete: ProcessorSettings = processor_class.from_dict(dict(settings)).to_dict()
    return complete


def _plain(folder: ModelFolder, settings: ProcessorSettings) -> PixelsInput:
    """Returns the steps of most image processors: resize, then crop."""
    if settings.get("do_pad"):
        raise UnsupportedModelError(
            f"{folder.path} pads after normalising (do_pad), which the runtime does not have; "
            "set do_pad to false in preprocessor_config.json to export without it"
        )
    steps: list[PixelStep] = []
    if settings.get("do_resize"):
        steps.append(_resize(folder, settings))
    if settings.get("do_center_crop"):
        steps.append(CenterCrop(*_height_width(folder, settings, "crop_size")))
    return _pixels(settings, steps)


def _resize(folder: ModelFolder, settings: ProcessorSettings) -> PixelStep:
    size, resample = settings["size"], _resample(settings)
    names = {name for name, value in size.items() if value is not None}
    if names == {"height", "width"}:
        return Resize(size["height"], size["width"], resample)
    if names == {"max_height", "max_width"}:
        return ResizeWithin(size["max_height"], size["max_width"], resample)
    if "shortest_edge" in names and names <= {"shortest_edge", "longest_edge"}:
        return ResizeShortestEdge(size["shortest_edge"], size.get("longest_edge"), resample)
    raise _odd_size(folder, "size", size)


def _donut(folder: ModelFolder, settings: ProcessorSettings) -> PixelsInput:
    height, width = _height_width(folder, settings, "size")
    resample = _resample(settings)
    steps: list[PixelStep] = []
    if settings.get("do_align_long_axis"):
        steps.append(AlignLongAxis(height, width))
    if settings.get("do_resize"):
        steps.append(ResizeShortestEdge(min(height, width), None, resample))
    if settings.get("do_thumbnail"):
        steps.append(Thumbnail(height, width, resample))
    if settings.get("do_pad"):
        steps.append(Pad(height, width))
    return _pixels(settings, steps)


def _nougat(folder: ModelFolder, settings: ProcessorSettings) -> PixelsInput:
    height, width = _height_width(folder, settings, "size")
    steps: list[PixelStep] = []
    if settings.get("do_crop_margin"):
        steps.append(CropMargin())
    if settings.get("do_align_long_axis"):
        steps.append(AlignLongAxis(height, width))
    if settings.get("do_resize"):
        steps.append(ResizeShortestEdge(min(height, width), None, _resample(settings)))
    if settings.get("do_thumbnail"):
        steps.append(Thumbnail(height, width, "bicubic", reducing_gap=2.0))
    if settings.get("do_pad"):
        steps.append(Pad(height, width))
    return _pixels(settings, steps)


def _tiles(folder: ModelFolder, settings: ProcessorSettings) -> TilesInput:
    side, resample = int(settings["max_image_size"]["longest_edge"]), _resample(settings)
    steps: list[PixelStep] = []
    if settings.get("do_resize"):
        longest = settings["size"].get("longest_edge")
        if longest:
            steps.append(ResizeLongestEdge(int(longest), resample))
        else:
            steps.append(Resize(*_height_width(folder, settings, "size"), resample))
    is_split = bool(settings.get("do_image_splitting"))
    steps.append(ResizeToTiles(side, resample) if is_split else Resize(side, side, resample))
    picture = _pixels(settings, steps)
    whole = after_steps(Image.new(picture.mode, folder.picture_size), picture)
    return TilesInput(picture, side, whole.height // side, whole.width // side, resample)


def _grid(folder: ModelFolder, settings: ProcessorSettings) -> PixelsInput:
    """Returns the steps of Qwen2-VL; its patches are cut in the encoder graph."""
    unit = int(settings["patch_size"]) * int(settings["merge_size"])
    steps: list[PixelStep] = []
    if settings.get("do_resize"):
        areas = int(settings["size"]["shortest_edge"]), int(settings["size"]["longest_edge"])
        width, height = grid_size(folder.picture_size, unit, *areas)
        steps.append(ResizeToGrid(unit, *areas, height, width, _resample(settings)))
    return _pixels(settings, steps)


def _pix2struct(folder: ModelFolder, settings: ProcessorSettings) -> PatchesInput:
    if settings.get("is_vqa"):
        raise UnsupportedModelError(
            f"{folder.path} writes the question into the picture (is_vqa), which the runtime does "
            "not do; set is_vqa to false in preprocessor_config.json and draw it yourself"
        )
    height, width = _height_width(folder, settings, "patch_size")
    return PatchesInput(
        PATCHES, MASK, settings["max_patches"], height, width, bool(settings.get("do_normalize"))
    )


def _pixels(settings: ProcessorSettings, steps: list[PixelStep]) -> PixelsInput:
    scale = float(settings["rescale_factor"]) if settings.get("do_rescale") else None
    if not settings.get("do_normalize"):
        return PixelsInput(PIXELS, tuple(steps), "RGB", scale)
    mean, std = _per_channel(settings["image_mean"]), _per_channel(settings["image_std"])
    return PixelsInput(PIXELS, tuple(steps), "RGB", scale, mean, std)


def _per_channel(value: Any) -> tuple[float, ...]:
    numbers = value if isinstance(value, (list, tuple)) else [value] * 3
    return tuple(map(float, numbers))


def _resample(settings: ProcessorSettings) -> Resample:
    value = settings.get("resample", 2)
    if isinstance(value, int):
        return _RESAMPLE[value]
    return cast(Resample, str(getattr(value, "value", value)).lower())


def _height_width(folder: ModelFolder, settings: ProcessorSettings, name: str) -> tuple[int, int]:
    size = settings[name]
    if not isinstance(size, Mapping) or not (size.get("height") and size.get("width")):
        raise _odd_size(folder, name, size)
    return int(size["height"]), int(size["width"])


def _odd_size(folder: ModelFolder, name: str, size: Any) -> ExportError:
    return UnsupportedModelError(
        f"{folder.path} has an image processor with {name} = {size!r}, a height and width were "
        "expected; correct preprocessor_config.json"
    )


def _whisper(folder: ModelFolder, settings: ProcessorSettings) -> AudioInput:
    _note_dither(folder, settings)
    rate = int(settings["sampling_rate"])
    features = LogMel(
        mels=int(settings["feature_size"]),
        fft=int(settings["n_fft"]),
        hop=int(settings["hop_length"]),
        samples=int(settings["chunk_length"]) * rate,
    )
    return AudioInput(FEATURES, rate, features, padding=float(settings["padding_value"]))


def _speech_to_text(folder: ModelFolder, settings: ProcessorSettings) -> AudioInput:
    _note_dither(folder, settings)
    normalizes = bool(settings["do_ceptral_normalize"])
    features = FilterBank(
        mels=int(settings["num_mel_bins"]),
        center=normalizes and bool(settings["normalize_means"]),
        scale=normalizes and bool(settings["normalize_vars"]),
    )
    frames = folder.encoder_value("max_source_positions")
    return AudioInput(
        FEATURES,
        int(settings["sampling_rate"]),
        features,
        mask=MASK,
        padding=float(settings["padding_value"]),
        max_seconds=None if frames is None else frames * _KALDI_HOP_S,
    )


def _wav2vec2(folder: ModelFolder, settings: ProcessorSettings) -> AudioInput:
    return AudioInput(
        WAVEFORM,
        int(settings["sampling_rate"]),
        Waveform(normalize=bool(settings["do_normalize"])),
        mask=MASK,
        padding=float(settings["padding_value"]),
        max_seconds=_longest_seconds(folder, int(settings["sampling_rate"])),
    )


def _longest_seconds(folder: ModelFolder, rate: int) -> float | None:
    """Returns the length of the sound that fits a table of positions; None without a table."""
    model = folder.model
    if folder.model_type == "speecht5":
        samples: float = model["max_speech_positions"] * math.prod(model["conv_stride"])
    elif folder.model_type == "moonshine_streaming":
        frame_ms = model["encoder_config"]["frame_ms"]
        samples = model["max_position_embeddings"] * _MOONSHINE_STRIDE * frame_ms * rate / 1000
    else:
        return None
    return min(_MOST_SECONDS, samples / rate)


def _note_dither(folder: ModelFolder, settings: ProcessorSettings) -> None:
    if settings.get("dither"):
        folder.warn(f"dither of {settings['dither']} is left out, it would be random")


_IMAGES: dict[str, Callable[[ModelFolder, ProcessorSettings], EncoderInput]] = {
    "ViT": _plain,
    "DeiT": _plain,
    "Beit": _plain,
    "Blip": _plain,
    "CLIP": _plain,
    "Siglip": _plain,
    "Donut": _donut,
    "Nougat": _nougat,
    "Pix2Struct": _pix2struct,
    "Idefics3": _tiles,
    "SmolVLM": _tiles,
    "Qwen2VL": _grid,
}
_AUDIO: dict[str, Callable[[ModelFolder, ProcessorSettings], EncoderInput]] = {
    "WhisperFeatureExtractor": _whisper,
    "Speech2TextFeatureExtractor": _speech_to_text,
    "SpeechT5FeatureExtractor": _wav2vec2,
    "Wav2Vec2FeatureExtractor": _wav2vec2,
}

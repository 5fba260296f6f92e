"""Makes an export job of a Hugging Face folder: model, settings and varying axes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hybrid_deploy.bundle.input_specs import (
    AudioInput,
    EncoderInput,
    LogMel,
    PixelsInput,
    TextInput,
    Waveform,
)
from hybrid_deploy.bundle.manifest import DimRange
from hybrid_deploy.export.export_job import ExportJob, ModelSpec
from hybrid_deploy.export.huggingface.adapter import adapt, load, prompt_reader
from hybrid_deploy.export.huggingface.config import TOKENS, import_settings
from hybrid_deploy.export.huggingface.folder import PICTURE_SIZE
from hybrid_deploy.export.huggingface.prompt import GRID, FolderPrompt, folder_prompt
from hybrid_deploy.export.model.dynamic_axes import (
    DynamicAxes,
    DynamicAxis,
)
from hybrid_deploy.runtime.preprocess.hf_image_processor import batch_pixels
from hybrid_deploy.runtime.preprocess.prepare import as_tuple

_LONGEST_SECONDS = 30.0  # for a folder without a limit
_SHORTEST_SECONDS = 0.1
_FRAMES_PER_SECOND = 100  # of Kaldi's filter banks
_SHORTEST_TEXT = 2  # tokens


def job_from_folder(
    folder: Path,
    max_length: int | None = None,
    picture_size: tuple[int, int] | None = None,
) -> tuple[ExportJob, list[str]]:
    """Returns the export job of a folder that `save_pretrained` wrote, and its warnings.

    Args:
        folder: holds the model, its processor and its tokenizer.
        max_length: largest number of tokens of a sequence, start tokens included; None takes the
            config's.
        picture_size: width and height of the pictures to export for, where the number of tiles or
            patches follows from their proportions; None takes a square.

    Returns:
        The job, and one line for each setting of the folder that the bundle does not follow.

    Raises:
        InputError: a file is missing or cannot be read.
        UnsupportedModelError: the class is not supported, or the runtime has no counterpart of a
            setting that changes the tokens.
        ExportError: the folder lacks a file or setting that the model needs.
    """
    picture_size = PICTURE_SIZE if picture_size is None else picture_size
    model = load(folder)
    reader, placeholder = prompt_reader(model) or (None, None)
    asked = None if placeholder is None else folder_prompt(folder, model, placeholder, picture_size)
    settings = import_settings(
        folder,
        model.config,
        max_length,
        starts_with_prompt=reader == "decoder",
        prompt=asked if reader == "encoder" else None,
        picture_size=picture_size,
    )
    inputs = as_tuple(settings.preprocess)
    adapted = adapt(model, None if asked is None else _example(asked, inputs, picture_size))
    adapted.train(False)
    spec = ModelSpec(
        name=folder.resolve().name,
        generation=settings.generation,
        preprocess=settings.preprocess,
        vocabulary=settings.vocabulary,
        dynamic=varying_axes(inputs, adapted.example),
        files=settings.files,
        prompt=asked.template if asked is not None and reader == "decoder" else None,
        speech=settings.speech,
    )
    checks = [{name: value.numpy() for name, value in adapted.example.items()}]
    return ExportJob(adapted, adapted.example, spec, checks), settings.warnings


def _example(
    asked: FolderPrompt, inputs: tuple[EncoderInput, ...], picture_size: tuple[int, int]
) -> dict[str, Tensor]:
    """Returns what the processor made, with pixels in place of the patches of Qwen2-VL.

    Its processor cuts the patches on the CPU; here the encoder graph does.
    """
    if GRID not in asked.example:
        return asked.example
    blank = Image.new("RGB", picture_size)
    pixels = {
        spec.name: torch.from_numpy(batch_pixels([blank], spec))
        for spec in inputs
        if isinstance(spec, PixelsInput)
    }
    return asked.example | pixels


def varying_axes(inputs: tuple[EncoderInput, ...], example: Mapping[str, Tensor]) -> DynamicAxes:
    """Returns the axes that follow the length of a text or an utterance; images have one size.

    Args:
        inputs: descriptions of the encoder's inputs.
        example: example inputs of the encoder by name; other inputs get no axis.
    """
    axes: dict[str, dict[int, DynamicAxis]] = {}
    for spec in inputs:
        if isinstance(spec, (TextInput, AudioInput)) and (length := _length_axis(spec)):
            names = (spec.name, spec.mask)
            axes |= {name: {1: length} for name in names if name is not None and name in example}
    return axes


def _length_axis(spec: TextInput | AudioInput) -> DynamicAxis | None:
    if isinstance(spec, TextInput):
        added = len(spec.prefix) + len(spec.suffix)
        # two texts, such as InstructBLIP's, have lengths of their own
        name = "text" if spec.name == TOKENS else spec.name
        return _range(name, added + _SHORTEST_TEXT, spec.max_length)
    if isinstance(spec.features, LogMel):
        return None
    is_waveform = isinstance(spec.features, Waveform)
    rate = spec.sampling_rate if is_waveform else _FRAMES_PER_SECOND
    longest = _LONGEST_SECONDS if spec.max_seconds is None else spec.max_seconds
    smallest, largest = round(rate * _SHORTEST_SECONDS), round(rate * longest)
    return _range("samples" if is_waveform else "frames", smallest, largest)


def _range(name: str, smallest: int, largest: int) -> DynamicAxis:
    return DynamicAxis(name, DimRange(smallest, max(smallest, largest // 4), largest))

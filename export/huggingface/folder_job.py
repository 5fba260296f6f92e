"""A Hugging Face folder as an export job: model, settings, and which axes vary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hybrid_deploy.bundle.input_specs import AudioInput, EncoderInput, LogMel, TextInput, Waveform
from hybrid_deploy.bundle.manifest import DimRange
from hybrid_deploy.export.export_job import ExportJob, ModelSpec
from hybrid_deploy.export.huggingface.adapter import adapt, load
from hybrid_deploy.export.huggingface.config import import_settings
from hybrid_deploy.export.model.dynamic_axes import (
    DynamicAxes,
    DynamicAxis,
)
from hybrid_deploy.runtime.preprocess.prepare import as_tuple

_LONGEST_SECONDS = 30.0  # where the folder names no limit
_SHORTEST_SECONDS = 0.1
_FRAMES_PER_SECOND = 100  # Kaldi's
_SHORTEST_TEXT = 2


def job_from_folder(folder: Path, max_length: int | None = None) -> tuple[ExportJob, list[str]]:
    """Makes the job of a folder as `save_pretrained` wrote it.

    Args:
        folder: holds the model, and what its input and output need: processor, tokenizer.
        max_length: most tokens of a sequence; None takes the model's.

    Returns:
        The job, and a line for each setting of the folder that is not carried over.

    Raises:
        InputError: a file is missing or cannot be read.
        UnsupportedModelError: the model or one of its settings has no counterpart.
        ExportError: what is needed is missing.
    """
    model = load(folder)
    settings = import_settings(folder, model.config, max_length)
    adapted = adapt(model)
    adapted.train(False)
    spec = ModelSpec(
        name=folder.resolve().name,
        generation=settings.generation,
        preprocess=settings.preprocess,
        vocabulary=settings.vocabulary,
        dynamic=varying_axes(as_tuple(settings.preprocess), adapted.example),
        files=settings.files,
    )
    checks = [{name: value.numpy() for name, value in adapted.example.items()}]
    return ExportJob(adapted, adapted.example, spec, checks), settings.warnings


def varying_axes(inputs: tuple[EncoderInput, ...], example: Mapping[str, Tensor]) -> DynamicAxes:
    """Finds the axes that follow the length of a text or an utterance; pictures have one size."""
    axes: dict[str, dict[int, DynamicAxis]] = {}
    for each in inputs:
        found = _axis(each)
        if found is not None:
            names = (each.name, str(getattr(each, "mask", None)))
            axes |= {name: {1: found} for name in names if name in example}
    return axes


def _axis(each: EncoderInput) -> DynamicAxis | None:
    if isinstance(each, TextInput):
        fixed = len(each.prefix) + len(each.suffix)
        return _range("text", fixed + _SHORTEST_TEXT, each.max_length)
    if not isinstance(each, AudioInput) or isinstance(each.features, LogMel):
        return None
    is_waveform = isinstance(each.features, Waveform)
    rate = each.sampling_rate if is_waveform else _FRAMES_PER_SECOND
    longest = _LONGEST_SECONDS if each.max_seconds is None else each.max_seconds
    smallest, largest = round(rate * _SHORTEST_SECONDS), round(rate * longest)
    return _range("samples" if is_waveform else "frames", smallest, largest)


def _range(name: str, smallest: int, largest: int) -> DynamicAxis:
    return DynamicAxis(name, DimRange(smallest, max(smallest, largest // 4), largest))

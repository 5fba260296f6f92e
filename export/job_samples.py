"""Adds real inputs to an export job: the gate decodes them, and the bundle keeps some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.input_specs import Preprocess
from hybrid_deploy.errors import InputError
from hybrid_deploy.export.export_job import ExportJob
from hybrid_deploy.export.model.dynamic_axes import DynamicAxes
from hybrid_deploy.export.model.interface import Inputs
from hybrid_deploy.runtime.preprocess.array_files import ARRAYS_SUFFIX, load_arrays
from hybrid_deploy.runtime.preprocess.prepare import (
    TEXT_SUFFIX,
    file_kind,
    is_companion_text,
    mask_names,
    prepare,
)
from hybrid_deploy.scratch import scratch_folder

MAX_GOLDEN = 8
"""Largest number of samples that become golden samples, evenly spaced in their order."""


def with_samples(job: ExportJob, folder: Path) -> ExportJob:
    """Returns the job with the inputs of a folder as check inputs and golden samples.

    Every input is decoded by the parity gate, after the job's own check inputs. At most
    `MAX_GOLDEN` of them become golden samples, beside the job's own.

    Args:
        job: the export job; its `preprocess` and its example say what the inputs must be.
        folder: files of the kind that the model reads at its top level, or `.npz` files with the
            encoder inputs by name; a model of a picture and a text has the text beside the picture.

    Raises:
        InputError: the folder does not exist or has no such file, or a file cannot be read or does
            not fit the model; the message names it.
    """
    paths = _files(folder, job.spec.preprocess)
    with scratch_folder("samples") as scratch:
        for name, content in job.spec.files.items():
            (scratch / name).write_bytes(content)
        checks = [_inputs(path, job, scratch) for path in paths]
    golden = dict(job.golden)
    count = min(len(paths), MAX_GOLDEN)
    for path in (paths[i * len(paths) // count] for i in range(count)):
        golden[path.name] = path.read_bytes()
        text = path.with_suffix(TEXT_SUFFIX)
        if is_companion_text(text, job.spec.preprocess) and text.is_file():
            golden[text.name] = text.read_bytes()
    return replace(job, checks=[*job.checks, *checks], golden=golden)


def _files(folder: Path, preprocess: Preprocess) -> Sequence[Path]:
    """Lists the files of the kind that the model reads and the `.npz` files, by name."""
    if not folder.is_dir():
        problem = "is no folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {problem}; --samples takes a folder of inputs")
    kind = file_kind(preprocess)
    suffixes = kind.suffixes | {ARRAYS_SUFFIX}
    files = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    paths = [path for path in files if path.suffix.lower() in suffixes]
    if not paths:
        raise InputError(
            f"{folder} holds no {kind.name} and no {ARRAYS_SUFFIX} files; name a folder with "
            "inputs of the model"
        )
    return paths


def _inputs(path: Path, job: ExportJob, tokenizer_folder: Path) -> Inputs:
    """Returns the encoder inputs of one file, in the order of the example.

    Raises:
        InputError: the file cannot be read, or does not fit the example; the message names it.
    """
    try:
        if path.suffix.lower() == ARRAYS_SUFFIX:
            inputs = load_arrays(path, list(job.example))
        else:
            inputs = prepare([path], job.spec.preprocess, folder=tokenizer_folder)
        return _checked(inputs, job)
    except InputError as error:
        message = str(error)
        raise InputError(message if str(path) in message else f"{path}: {message}") from error


def _checked(inputs: Inputs, job: ExportJob) -> Inputs:
    """Returns the inputs in the order of the example, with its types of masks.

    Raises:
        InputError: a name, type or size is not that of the example, or out of the declared range.
    """
    masks, checked = mask_names(job.spec.preprocess), dict[str, NDArray[Any]]()
    for name, example in job.example.items():
        if name not in inputs:
            raise InputError(f"lacks the input {name}; the model takes {', '.join(job.example)}")
        reference = example[:1].numpy()
        array = inputs[name].astype(reference.dtype) if name in masks else inputs[name]
        if array.dtype != reference.dtype or array.ndim != reference.ndim:
            raise InputError(
                f"input {name} is {array.dtype} of {array.ndim} axes, the model takes "
                f"{reference.dtype} of {reference.ndim}"
            )
        if len(array) != 1:
            raise InputError(f"input {name} holds {len(array)} inputs; give a file for each")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"input {name} holds NaN or infinity")
        for axis in range(1, array.ndim):
            _check_size(name, axis, array.shape[axis], reference.shape[axis], job.spec.dynamic)
        checked[name] = array
    return checked


def _check_size(name: str, axis: int, size: int, fixed: int, dynamic: DynamicAxes) -> None:
    """Checks one size against the declared range, or against the example's where it is fixed."""
    varying = dynamic.get(name, {}).get(axis)
    low, high = (fixed, fixed) if varying is None else (varying.sizes.min, varying.sizes.max)
    if not low <= size <= high:
        allowed = f"{low}" if low == high else f"{low} to {high}"
        raise InputError(
            f"input {name} has {size} on axis {axis}, the export allows {allowed}; export with "
            "another range, or leave the file out"
        )

"""Makes the encoder's inputs from files and texts, as the manifest describes them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.argument_checks import texts_of
from hybrid_deploy.bundle.input_specs import (
    ArrayInput,
    AudioInput,
    EncoderInput,
    PixelsInput,
    Preprocess,
    TextInput,
    TilesInput,
)
from hybrid_deploy.errors import InputError
from hybrid_deploy.input_files import read_errors
from hybrid_deploy.runtime.preprocess.array_files import load_arrays
from hybrid_deploy.runtime.preprocess.audio import batch_audio, load_audio, most_samples_of
from hybrid_deploy.runtime.preprocess.text import batch_texts, load_text
from hybrid_deploy.runtime.tokenizer import TokenizerSource
from hybrid_deploy.system_errors import typed_errors

Arrays: TypeAlias = dict[str, NDArray[Any]]
"""Array of each encoder input, by its name."""

TEXT_SUFFIX = ".txt"
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3"})


@typed_errors()
def prepare(
    paths: Sequence[Path],
    spec: Preprocess,
    *,
    folder: TokenizerSource | None = None,
    texts: Sequence[str] | None = None,
) -> Arrays:
    """Returns one batch of encoder inputs.

    If a model takes a picture and a text, the texts come from `texts`, or else from files beside
    the pictures: `page.txt` is the text for `page.png`.

    Args:
        paths: a file for each sequence; may be empty if the model takes a text only and `texts`
            has it.
        spec: description of the encoder's inputs.
        folder: holds the tokenizer; needed for texts only.
        texts: a text for each sequence; None reads them from files.

    Raises:
        InputError: a file or text is missing or unusable, or there is no file at all.
    """
    inputs = as_tuple(spec)
    if texts is not None:
        texts = texts_of(texts)
    takes_text = any(isinstance(encoder_input, TextInput) for encoder_input in inputs)
    if texts is not None and not takes_text:
        raise InputError("the model takes no text besides its files; leave the text out")
    if not paths and not (texts and len(inputs) == 1):
        raise InputError("no input files were given")
    if texts is not None and paths and len(texts) != len(paths):
        raise InputError(f"{len(texts)} texts were given for {len(paths)} files; give one for each")
    arrays: Arrays = {}
    for encoder_input in inputs:
        if isinstance(encoder_input, TextInput):
            rows = _read_texts(paths, encoder_input, len(inputs) == 1) if texts is None else texts
            arrays |= batch_texts(rows, encoder_input, folder)
        else:
            with read_errors(", ".join(map(str, paths)), "cannot be prepared"):
                arrays |= _from_files(paths, encoder_input)
    return arrays


def as_tuple(spec: Preprocess) -> tuple[EncoderInput, ...]:
    """Returns the inputs of an encoder as a tuple, also if there is only one."""
    return spec if isinstance(spec, tuple) else (spec,)


def mask_names(spec: Preprocess) -> set[str]:
    """Returns the names of all masks of the inputs."""
    masks = (
        each.mask
        for each in as_tuple(spec)
        if not isinstance(each, (ArrayInput, PixelsInput, TilesInput))
    )
    return {mask for mask in masks if mask is not None}


def takes_text_beside_files(spec: Preprocess) -> bool:
    """Returns whether a model takes a text with each of its files, such as a question."""
    inputs = as_tuple(spec)
    return len(inputs) > 1 and any(isinstance(encoder_input, TextInput) for encoder_input in inputs)


def is_companion_text(path: Path, spec: Preprocess) -> bool:
    """Returns whether a file is the text for another input file, and no input file itself."""
    return takes_text_beside_files(spec) and path.suffix == TEXT_SUFFIX


@dataclass(frozen=True)
class FileKind:
    """The kind of files that a model reads.

    Attributes:
        name: plural of the kind in messages, such as `images`.
        suffixes: lower-case suffixes of the files, such as `.png`.
    """

    name: str
    suffixes: frozenset[str]


def file_kind(spec: Preprocess) -> FileKind:
    """Returns the kind of files that a model reads from a folder."""
    main_input = next((each for each in as_tuple(spec) if not isinstance(each, TextInput)), None)
    if main_input is None:
        return FileKind("texts", frozenset({TEXT_SUFFIX}))
    if isinstance(main_input, ArrayInput):
        suffix = ".npz" if main_input.others else ".npy"
        return FileKind(f"{suffix} files", frozenset({suffix}))
    if isinstance(main_input, AudioInput):
        return FileKind("sound files", AUDIO_SUFFIXES)
    from hybrid_deploy.runtime.preprocess.image import picture_suffixes

    return FileKind("images", picture_suffixes())


def _from_files(paths: Sequence[Path], spec: EncoderInput) -> Arrays:
    if isinstance(spec, AudioInput):
        most, rate = most_samples_of(spec), spec.sampling_rate
        return batch_audio([load_audio(path, rate, most) for path in paths], spec)
    if isinstance(spec, ArrayInput):
        return batch_arrays([load_arrays(path, (spec.name, *spec.others)) for path in paths])
    assert not isinstance(spec, TextInput)
    from hybrid_deploy.runtime.preprocess.batch_pictures import batch_pictures

    return batch_pictures(paths, spec)


def _read_texts(paths: Sequence[Path], spec: TextInput, text_only: bool) -> list[str]:
    """Reads the texts from the files themselves, or from the text files beside them.

    Without a file beside it, a picture is asked the default of the model's template.
    """
    if text_only:
        return [load_text(path) for path in paths]
    default = None if spec.template is None else spec.template.default
    return [_text_beside(path, default) for path in paths]


def _text_beside(path: Path, default: str | None) -> str:
    text_path = path.with_suffix(TEXT_SUFFIX)
    if os.path.lexists(text_path):  # a dangling link is no text that was left out
        return load_text(text_path)
    if default is None:
        raise InputError(
            f"the model takes a text with {path}; give it with --text, or in {text_path}"
        )
    return default


def batch_arrays(loaded: Sequence[Mapping[str, NDArray[Any]]]) -> Arrays:
    """Concatenates arrays of the same name along the batch axis.

    Args:
        loaded: arrays of each file, by input name.

    Raises:
        InputError: the files differ in the names, types or sizes of their arrays.
    """
    batch: Arrays = {}
    for name, first in loaded[0].items():
        if any(set(file_arrays) != set(loaded[0]) for file_arrays in loaded):
            raise InputError("arrays of unlike names do not form a batch; run them one by one")
        arrays = [file_arrays[name] for file_arrays in loaded]
        for array in arrays:
            if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
                raise InputError(
                    f"arrays {name} of {first.dtype} {first.shape} and {array.dtype} "
                    f"{array.shape} do not form a batch; run them one by one"
                )
        batch[name] = np.concatenate(arrays)
    return batch

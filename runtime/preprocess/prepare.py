"""From files and texts to the arrays that an encoder takes, as the manifest describes it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.input_specs import (
    ArrayInput,
    AudioInput,
    EncoderInput,
    Preprocess,
    TextInput,
)
from hybrid_deploy.errors import InputError
from hybrid_deploy.runtime.preprocess.audio import batch_audio, load_audio
from hybrid_deploy.runtime.preprocess.text import batch_texts, load_text

Arrays: TypeAlias = dict[str, NDArray[Any]]
TEXT_SUFFIX = ".txt"
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3"})


def prepare(
    paths: Sequence[Path],
    spec: Preprocess,
    *,
    folder: Path | None = None,
    texts: Sequence[str] | None = None,
) -> Arrays:
    """Makes one batch of encoder inputs.

    A model that takes a picture and a text is given the text in `texts`, or finds it beside each
    file, in one of the same name that ends in `.txt`.

    Args:
        paths: a file for each sequence; none if text is all that the model takes, and is given.
        spec: what the encoder takes.
        folder: of the bundle, which holds the tokenizer of a text.
        texts: a text for each sequence, for models that take one.

    Raises:
        InputError: a file or text is missing or cannot be used, or there is none.
    """
    inputs = as_tuple(spec)
    takes_text = any(isinstance(each, TextInput) for each in inputs)
    if texts is not None and not takes_text:
        raise InputError("the model takes no text besides its files; leave the text out")
    if not paths and not (texts and len(inputs) == 1):
        raise InputError("no input files were given")
    if texts is not None and paths and len(texts) != len(paths):
        raise InputError(f"{len(texts)} texts were given for {len(paths)} files; give one for each")
    arrays: Arrays = {}
    for each in inputs:
        if isinstance(each, TextInput):
            arrays |= batch_texts(
                _texts(paths, alone=len(inputs) == 1) if texts is None else texts, each, folder
            )
        else:
            arrays |= _from_files(paths, each)
    return arrays


def as_tuple(spec: Preprocess) -> tuple[EncoderInput, ...]:
    """Returns the inputs of an encoder, one or several."""
    return spec if isinstance(spec, tuple) else (spec,)


def mask_names(spec: Preprocess) -> set[str]:
    """Names the masks that are made beside an input."""
    return {mask for each in as_tuple(spec) if (mask := getattr(each, "mask", None)) is not None}


def is_companion_text(path: Path, spec: Preprocess) -> bool:
    """Returns whether a file is no input itself, but the text that goes with one."""
    inputs = as_tuple(spec)
    takes_text = any(isinstance(each, TextInput) for each in inputs)
    return takes_text and len(inputs) > 1 and path.suffix == TEXT_SUFFIX


@dataclass(frozen=True)
class FileKind:
    """The files that a model reads.

    Attributes:
        name: what they are called in messages.
        suffixes: how their names end, in small letters.
    """

    name: str
    suffixes: frozenset[str]


def file_kind(spec: Preprocess) -> FileKind:
    """Returns which files of a folder a model reads."""
    first = next((each for each in as_tuple(spec) if not isinstance(each, TextInput)), None)
    if first is None:
        return FileKind("texts", frozenset({TEXT_SUFFIX}))
    if isinstance(first, ArrayInput):
        suffix = ".npz" if first.others else ".npy"
        return FileKind(f"{suffix} files", frozenset({suffix}))
    if isinstance(first, AudioInput):
        return FileKind("sound files", AUDIO_SUFFIXES)
    from hybrid_deploy.runtime.preprocess.image import picture_suffixes

    return FileKind("images", picture_suffixes())


def _from_files(paths: Sequence[Path], spec: EncoderInput) -> Arrays:
    if isinstance(spec, AudioInput):
        return batch_audio([load_audio(path, spec.sampling_rate) for path in paths], spec)
    if isinstance(spec, ArrayInput):
        return batch_arrays([_load_arrays(path, spec) for path in paths])
    assert not isinstance(spec, TextInput)
    from hybrid_deploy.runtime.preprocess.pillow import batch_pictures

    return batch_pictures(paths, spec)


def _texts(paths: Sequence[Path], *, alone: bool) -> list[str]:
    """Reads the texts: the files themselves, or those beside them."""
    if alone:
        return [load_text(path) for path in paths]
    beside = [path.with_suffix(TEXT_SUFFIX) for path in paths]
    for path, text in zip(paths, beside, strict=True):
        if not text.is_file():
            raise InputError(
                f"the model takes a text with {path}; give it with --text, or in {text}"
            )
    return [load_text(path) for path in beside]


def batch_arrays(loaded: Sequence[Mapping[str, NDArray[Any]]]) -> Arrays:
    """Puts arrays with the same names behind each other.

    Raises:
        InputError: names, types or sizes differ.
    """
    batch: Arrays = {}
    for name, first in loaded[0].items():
        if any(set(each) != set(loaded[0]) for each in loaded):
            raise InputError("arrays of unlike names do not form a batch; run them one by one")
        arrays = [each[name] for each in loaded]
        for array in arrays:
            if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
                raise InputError(
                    f"arrays {name} of {first.dtype} {first.shape} and {array.dtype} "
                    f"{array.shape} do not form a batch; run them one by one"
                )
        batch[name] = np.concatenate(arrays)
    return batch


def _load_arrays(path: Path, spec: ArrayInput) -> Arrays:
    names = (spec.name, *spec.others)
    kind = ".npz" if spec.others else ".npy"
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {spec.name: loaded}
        else:
            with loaded:
                arrays = {name: loaded[name] for name in names if name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a {kind} array: {error}") from error
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; give a .npz file with these arrays")
    if any(array.ndim == 0 for array in arrays.values()):
        raise InputError(f"{path} holds a single number; its arrays must be batch first")
    return arrays

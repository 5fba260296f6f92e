"""Encoder inputs as arrays: read from `.npz` files, and checked against what the encoder takes."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.manifest import GraphSpec
from hybrid_deploy.errors import InputError
from hybrid_deploy.runtime.backends.tensor_checks import check_inputs

ARRAYS_SUFFIX = ".npz"
_UNREADABLE = (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error)

Arrays = Mapping[str, NDArray[Any]]


def read_arrays(path: Path, encoder: GraphSpec | None) -> Arrays:
    """Reads the encoder inputs of one sample from a `.npz` file.

    Args:
        path: holds arrays by the names of the encoder's inputs, batch first; others are ignored.
        encoder: what takes them; None takes whatever is there.

    Raises:
        InputError: the file cannot be read, or does not fit the encoder; the message names it.
    """
    if not path.is_file():
        raise InputError(f"{path} {'is no file' if path.exists() else 'does not exist'}")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not a {ARRAYS_SUFFIX} file")
    try:
        with np.load(path, allow_pickle=False) as file:
            wanted = file.files if encoder is None else [spec.name for spec in encoder.inputs]
            names = wanted if set(wanted) <= set(file.files) else file.files
            arrays = {name: file[name] for name in names}
    except _UNREADABLE as error:
        raise InputError(f"{path} is a damaged {ARRAYS_SUFFIX} file: {error}") from error
    return checked_arrays(str(path), arrays, encoder)


def checked_arrays(name: str, arrays: Arrays, encoder: GraphSpec | None) -> Arrays:
    """Returns the arrays of a sample back if they are what an encoder takes.

    Raises:
        InputError: they are not; the message names the sample and what the encoder takes.
    """
    if encoder is None:
        return arrays
    try:
        check_inputs(encoder, arrays)
    except InputError as error:
        takes = ", ".join(
            f"{each.name}: {each.dtype} {'x'.join(map(str, each.shape))}" for each in encoder.inputs
        )
        raise InputError(f"{name}: {error}; the encoder takes {takes}") from error
    return arrays

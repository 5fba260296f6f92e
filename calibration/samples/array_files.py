"""Reads encoder inputs from `.npz` files and checks arrays against the encoder's inputs."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hybrid_deploy.bundle.manifest import GraphSpec
from hybrid_deploy.errors import InputError
from hybrid_deploy.input_files import check_file, read_errors
from hybrid_deploy.runtime.backends.tensor_checks import check_inputs
from hybrid_deploy.runtime.preprocess.array_files import ARRAYS_SUFFIX, read_npz

Arrays = Mapping[str, NDArray[Any]]


def read_arrays(path: Path, encoder: GraphSpec | None) -> Arrays:
    """Reads the encoder inputs of one sample from a `.npz` file.

    Args:
        path: the file; its arrays have the names of the encoder's inputs, batch first. Arrays of
            other names are ignored.
        encoder: the encoder graph that takes the arrays; if None, all arrays are returned.

    Raises:
        InputError: the file cannot be read, or does not fit the encoder; the message names it.
    """
    check_file(path)
    with read_errors(path, f"is not a {ARRAYS_SUFFIX} file"), path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise InputError(f"{path} is not a {ARRAYS_SUFFIX} file")
    expected = None if encoder is None else [spec.name for spec in encoder.inputs]
    arrays = read_npz(path, expected)
    if expected is not None and len(arrays) < len(expected):
        arrays = read_npz(path)  # the message of the error lists all that are there
    return checked_arrays(str(path), arrays, encoder)


def checked_arrays(name: str, arrays: Arrays, encoder: GraphSpec | None) -> Arrays:
    """Checks the names, types and shapes of a sample's arrays and returns the same arrays.

    Args:
        name: the sample's name in the message of an error.
        arrays: the arrays by name, batch first.
        encoder: the encoder graph that takes the arrays; None checks nothing.

    Raises:
        InputError: the arrays do not fit the encoder; the message states what it takes.
    """
    if encoder is None:
        return arrays
    try:
        check_inputs(encoder, arrays)
    except InputError as error:
        expected = ", ".join(
            f"{spec.name}: {spec.dtype} {'x'.join(map(str, spec.shape))}" for spec in encoder.inputs
        )
        raise InputError(f"{name}: {error}; the encoder takes {expected}") from error
    return arrays

"""Checks encoder inputs before the encoder runs, and converts masks to its types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.argument_checks import shown
from hybrid_deploy.bundle.manifest import DimRange, GraphSpec
from hybrid_deploy.contract import BATCH_DIM
from hybrid_deploy.errors import InputError

_MASK_TYPES = {"bool": np.bool_, "float": np.float32, "float16": np.float16, "int64": np.int64}


def check_values(
    inputs: Mapping[str, NDArray[Any]], encoder: GraphSpec, dims: Mapping[str, DimRange]
) -> None:
    """Checks that sizes lie in the ranges of the export, and that floats are finite.

    Names, types and fixed sizes are checked by the backend.

    Args:
        inputs: encoder inputs by name, batch first.
        encoder: the encoder's graph in the manifest.
        dims: range of each dynamic axis, by its name.

    Raises:
        InputError: a size is out of its range or no multiple of its number, or a number is NaN or
            infinite.
    """
    check_arrays(inputs)
    for tensor in encoder.inputs:
        array = inputs.get(tensor.name)
        if array is None or array.ndim != len(tensor.shape) or not array.size:
            continue
        for dim, size in zip(tensor.shape, array.shape, strict=True):
            allowed = dims.get(str(dim)) if dim != BATCH_DIM else None
            if allowed is not None and not allowed.min <= size <= allowed.max:
                raise InputError(
                    f"input {tensor.name} has {dim} {size}, the model was exported for "
                    f"{allowed.min} to {allowed.max}; resize it, cut it into parts, or export with "
                    "another range"
                )
            if allowed is not None and size % allowed.multiple:
                raise InputError(
                    f"input {tensor.name} has {dim} {size}, the model takes multiples of "
                    f"{allowed.multiple}; pad it to {size + -size % allowed.multiple}"
                )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(
                f"input {tensor.name} holds NaN or infinity; check how the numbers are made"
            )


def check_arrays(inputs: Mapping[str, NDArray[Any]]) -> None:
    """Checks that encoder inputs are arrays of numbers by their names.

    Raises:
        InputError: they are something else.
    """
    if not isinstance(inputs, Mapping):
        raise InputError(f"arrays by the names of the inputs were expected, got {shown(inputs)}")
    for name, array in inputs.items():
        if not isinstance(name, str):
            raise InputError(f"the name of an input must be a text, got {shown(name)}")
        if type(array) is not np.ndarray or array.dtype.kind not in "biufcV":
            raise InputError(
                f"input {shown(name)} must be a numpy array of numbers, got {shown(array)}"
            )


def check_batches_of_one(batches: Iterable[Mapping[str, NDArray[Any]]]) -> None:
    """Checks that each of several inputs is a batch of one.

    Raises:
        InputError: one is no arrays by name, or another number of sequences.
    """
    for inputs in batches:
        check_arrays(inputs)
        if any(not array.ndim or len(array) != 1 for array in inputs.values()):
            raise InputError("each of several inputs must be a batch of one; split it")


def check_one_each(inputs: Mapping[str, NDArray[Any]], files: Sequence[Path]) -> None:
    """Checks that each file gave the arrays of one sequence.

    Args:
        inputs: encoder inputs by name, batch first.
        files: the files that they were read from; () for none.

    Raises:
        InputError: a file holds several sequences, or none.
    """
    for name, array in inputs.items():
        if files and len(array) != len(files):
            who = f"{files[0]} holds" if len(files) == 1 else f"{len(files)} files hold"
            raise InputError(
                f"{who} {len(array)} inputs as {name}, each file must hold one: an array whose "
                "first size is 1; split it"
            )


def with_mask_types(
    inputs: Mapping[str, NDArray[Any]], masks: set[str], encoder: GraphSpec
) -> dict[str, NDArray[Any]]:
    """Returns the inputs with masks converted to the types that the encoder takes.

    Args:
        inputs: encoder inputs by name.
        masks: names of the inputs that are masks.
        encoder: the encoder's graph in the manifest; its masks are bool, integer or float.
    """
    dtypes = {tensor.name: _MASK_TYPES.get(tensor.dtype) for tensor in encoder.inputs}
    return {
        name: array.astype(dtypes[name], copy=False)
        if name in masks and dtypes.get(name)
        else array
        for name, array in inputs.items()
    }

"""Checks arrays against the inputs that a graph takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.manifest import GraphSpec, TensorSpec
from hybrid_deploy.errors import InputError

DTYPES = {
    "float": np.float32,
    "float16": np.float16,
    "int8": np.int8,
    "int64": np.int64,
    "bool": np.bool_,
}
"""The numpy dtype of each manifest dtype that the graphs' inputs and caches have on a CPU."""


def check_inputs(spec: GraphSpec, inputs: Mapping[str, NDArray[Any]]) -> int:
    """Checks arrays against the inputs that a graph takes, and returns their batch size.

    Args:
        spec: description of the graph.
        inputs: arrays by input name; the first dimension of each is the batch.

    Raises:
        InputError: a name, dtype, rank or size differs, or an array is empty.
    """
    expected = {tensor.name: tensor for tensor in spec.inputs}
    if set(inputs) != set(expected):
        raise InputError(f"expected the inputs {sorted(expected)}, got {sorted(inputs)}")
    for name, array in inputs.items():
        _check_array(expected[name], array)
    batches = {array.shape[0] for array in inputs.values()}
    if len(batches) != 1:
        raise InputError(f"the inputs disagree on the batch size: {sorted(batches)}")
    return int(batches.pop())


def _check_array(tensor: TensorSpec, array: NDArray[Any]) -> None:
    """Refuses an array whose dtype or shape a graph's input does not allow."""
    fits = array.ndim == len(tensor.shape) and all(
        isinstance(expected, str) or expected == actual
        for expected, actual in zip(tensor.shape, array.shape, strict=True)
    )
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise InputError(
            f"input {tensor.name} is declared as {tensor.dtype}; arrays are given as "
            f"{', '.join(DTYPES)}"
        )
    if not fits or array.dtype != dtype:
        raise InputError(
            f"input {tensor.name} must be {tensor.dtype} {_text(tensor.shape)}, "
            f"got {array.dtype} {_text(array.shape)}"
        )
    if 0 in array.shape:
        raise InputError(f"input {tensor.name} is empty: {_text(array.shape)}")


def _text(shape: tuple[int | str, ...]) -> str:
    return "x".join(map(str, shape))

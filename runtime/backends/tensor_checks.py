"""Arrays against what a graph takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.manifest import GraphSpec
from hybrid_deploy.errors import InputError

DTYPES = {
    "float": np.float32,
    "float16": np.float16,
    "int8": np.int8,
    "int64": np.int64,
    "bool": np.bool_,
}
"""The types of a manifest that numpy has too."""


def check_inputs(spec: GraphSpec, inputs: Mapping[str, NDArray[Any]]) -> int:
    """Checks arrays against what a graph takes, and gives their batch size.

    Raises:
        InputError: a name, type, rank or size differs, or the batch is empty.
    """
    expected = {tensor.name: tensor for tensor in spec.inputs}
    if set(inputs) != set(expected):
        raise InputError(f"expected the inputs {sorted(expected)}, got {sorted(inputs)}")
    batches = set()
    for name, array in inputs.items():
        tensor = expected[name]
        shape = "x".join(str(size) for size in tensor.shape)
        fits = array.ndim == len(tensor.shape) and all(
            isinstance(want, str) or want == got
            for want, got in zip(tensor.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != DTYPES[tensor.dtype]:
            raise InputError(
                f"input {name} must be {tensor.dtype} {shape}, "
                f"got {array.dtype} {'x'.join(map(str, array.shape))}"
            )
        if 0 in array.shape:
            raise InputError(f"input {name} is empty: {'x'.join(map(str, array.shape))}")
        batches.add(array.shape[0])
    if len(batches) != 1:
        raise InputError(f"the inputs disagree on the batch size: {sorted(batches)}")
    return int(batches.pop())

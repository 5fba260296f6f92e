"""What is wrong with encoder inputs before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.manifest import DimRange, GraphSpec
from hybrid_deploy.contract import BATCH_DIM
from hybrid_deploy.errors import InputError

_MASK_TYPES = {"bool": np.bool_, "float": np.float32, "float16": np.float16, "int64": np.int64}


def check_values(
    inputs: Mapping[str, NDArray[Any]], encoder: GraphSpec, dims: Mapping[str, DimRange]
) -> None:
    """Checks sizes against the ranges that the model was exported for, and floats for NaN.

    Names, types and fixed sizes are the backend's to check.

    Raises:
        InputError: a size is out of its range, or a number is NaN or infinite.
    """
    for tensor in encoder.inputs:
        array = inputs.get(tensor.name)
        if array is None or array.ndim != len(tensor.shape) or not array.size:
            continue
        for dim, size in zip(tensor.shape, array.shape, strict=True):
            known = dims.get(str(dim)) if dim != BATCH_DIM else None
            if known is not None and not known.min <= size <= known.max:
                raise InputError(
                    f"input {tensor.name} has {dim} {size}, the model was exported for {known.min} "
                    f"to {known.max}; resize it, cut it into parts, or export with another range"
                )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(
                f"input {tensor.name} holds NaN or infinity; look at where the numbers come from"
            )


def with_mask_types(
    inputs: Mapping[str, NDArray[Any]], masks: set[str], encoder: GraphSpec
) -> dict[str, NDArray[Any]]:
    """Returns masks the type that the encoder takes; models have them as bool, int or float."""
    wanted = {tensor.name: _MASK_TYPES.get(tensor.dtype) for tensor in encoder.inputs}
    return {
        name: array.astype(wanted[name], copy=False)
        if name in masks and wanted.get(name)
        else array
        for name, array in inputs.items()
    }

"""The varying axes of the encoder inputs: their names, ranges and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybrid_deploy.bundle.manifest import DimRange
from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.model.interface import reference_memory
from hybrid_deploy.export.trace.refusal import first_line, user_line


@dataclass(frozen=True)
class DynamicAxis:
    """An axis of an encoder input whose size varies.

    Attributes:
        name: name of the symbolic dimension in the graphs.
        sizes: smallest, typical and largest size.
    """

    name: str
    sizes: DimRange


DynamicAxes = Mapping[str, Mapping[int, DynamicAxis]]
"""Varying axes besides the batch: by name of the encoder input, then by axis."""


def memory_axes(
    model: nn.Module, inputs: Mapping[str, Tensor], dynamic: DynamicAxes
) -> tuple[tuple[int, ...], ...]:
    """Returns the axes of the memory that vary with the inputs, found by encoding two sizes.

    Args:
        model: module with `encode`, in eval mode.
        inputs: example inputs of the encoder by name, batch first.
        dynamic: varying axes of the inputs.

    Returns:
        For each memory tensor, its varying axes besides the batch.

    Raises:
        UnsupportedModelError: encode() fails at one end of the declared ranges, or returns tensors
            of another number or rank than at the other end.
    """
    shapes: list[list[torch.Size]] = []
    given: list[str] = []
    for bound in ("min", "max"):
        values = tuple(resized(inputs, dynamic, bound).values())
        given.append(", ".join(str(tuple(value.shape)) for value in values))
        try:
            shapes.append([value.shape for value in reference_memory(model, values)])
        except Exception as error:
            raise UnsupportedModelError(
                f"{user_line(error)}encode() fails on inputs of the declared size {given[-1]}: "
                f"{first_line(error)}; narrow the dynamic range"
            ) from error
    ranks = [[len(shape) for shape in each] for each in shapes]
    if ranks[0] != ranks[1]:
        texts = [", ".join(str(tuple(shape)) for shape in each) for each in shapes]
        raise UnsupportedModelError(
            f"encode() returns {texts[0]} for inputs of size {given[0]}, but {texts[1]} for "
            f"{given[1]}: the graph has one number of memory tensors and of their axes; return the "
            "same ones at every size, or narrow the dynamic range"
        )
    return tuple(
        tuple(axis for axis, (a, b) in enumerate(zip(small, large, strict=True)) if axis and a != b)
        for small, large in zip(*shapes, strict=True)
    )


def declared_ranges(dynamic: DynamicAxes) -> dict[str, DimRange]:
    """Returns the ranges of the inputs' varying axes, by the name of the dimension."""
    return {axis.name: axis.sizes for axes in dynamic.values() for axis in axes.values()}


def resized(inputs: Mapping[str, Tensor], dynamic: DynamicAxes, bound: str) -> dict[str, Tensor]:
    """Returns the inputs with their varying axes cut or repeated to another size.

    Args:
        inputs: encoder inputs by name, batch first.
        dynamic: varying axes of the inputs.
        bound: size to take from each range: `min`, `typical` or `max`.
    """
    ranges = declared_ranges(dynamic)
    return resized_to(inputs, dynamic, {name: getattr(r, bound) for name, r in ranges.items()})


def resized_to(
    inputs: Mapping[str, Tensor], dynamic: DynamicAxes, sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    """Returns the inputs with their varying axes cut or repeated to the given sizes.

    Args:
        inputs: encoder inputs by name, batch first.
        dynamic: varying axes of the inputs.
        sizes: size of each varying dimension, by its name.
    """
    return {name: _resized(value, dynamic.get(name, {}), sizes) for name, value in inputs.items()}


def _resized(value: Tensor, axes: Mapping[int, DynamicAxis], sizes: Mapping[str, int]) -> Tensor:
    for axis, varying in axes.items():
        size = sizes[varying.name]
        indices = torch.arange(size) % value.shape[axis]
        value = value.index_select(axis, indices)
    return value

"""Finds the multiples that sizes must be of because the model itself fails at the sizes between.

A vision transformer, for example, may add positions for `width // 8` columns to the columns that
three strides of 2 leave, which are one more for most widths: it works at multiples of 8 and at few
widths between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import msgspec
import torch
from torch import Tensor, nn

from hybrid_deploy.bundle.manifest import DimRange
from hybrid_deploy.export.model.dynamic_axes import (
    DynamicAxes,
    DynamicAxis,
    declared_ranges,
    resized_to,
)
from hybrid_deploy.export.model.interface import (
    has_custom_step,
    reference_logits,
    reference_memory,
)

_TRIED_SIZES = 7  # above the smallest, where encode() is fastest
_LEAST_SIZES = 4  # a range of fewer sizes is a few fixed ones rather than a multiple


def working_sizes(
    model: nn.Module, example: Mapping[str, Tensor], dynamic: DynamicAxes
) -> DynamicAxes:
    """Returns the axes, in multiples at which the model works if it fails at sizes between them.

    Args:
        model: module with `encode`, in eval mode; it works on the example.
        example: encoder inputs by name, batch first.
        dynamic: varying axes of the inputs.

    Returns:
        The same axes; one without a multiple at which the model works stays as it is.
    """
    ranges = declared_ranges(dynamic)
    narrowed = {name: _narrowed(model, example, dynamic, name) for name in ranges}
    return {
        input_name: {
            place: DynamicAxis(axis.name, narrowed[axis.name]) for place, axis in axes.items()
        }
        for input_name, axes in dynamic.items()
    }


def narrowing_remarks(declared: DynamicAxes, narrowed: DynamicAxes) -> tuple[str, ...]:
    """Returns a sentence for each dimension whose sizes became multiples."""
    before, after = declared_ranges(declared), declared_ranges(narrowed)
    return tuple(
        f"the model itself fails at some sizes of {name}: the bundle takes multiples of "
        f"{sizes.multiple} from {sizes.min} to {sizes.max}"
        for name, sizes in after.items()
        if sizes.multiple != before[name].multiple
    )


def _narrowed(
    model: nn.Module, example: Mapping[str, Tensor], dynamic: DynamicAxes, name: str
) -> DimRange:
    """Returns the range of a dimension with the least multiple at which the model works."""
    ranges = declared_ranges(dynamic)
    typical = {other: sizes.typical for other, sizes in ranges.items()}
    for candidate in _candidates(ranges[name]):
        sizes = [candidate.min + candidate.multiple * k for k in range(1, _TRIED_SIZES + 1)]
        tried = ({**typical, name: size} for size in sizes if size <= candidate.max)
        if all(_works(model, resized_to(example, dynamic, each)) for each in tried):
            return candidate
    return ranges[name]


def _candidates(sizes: DimRange) -> Iterator[DimRange]:
    """Yields the range with each multiple that its ends and its typical size have."""
    common = math.gcd(sizes.min, sizes.typical, sizes.max)
    for multiple in range(sizes.multiple, common + 1, sizes.multiple):
        enough = sizes.max - sizes.min >= _LEAST_SIZES * multiple
        if multiple == sizes.multiple or (common % multiple == 0 and enough):
            yield msgspec.structs.replace(sizes, multiple=multiple)


def _works(model: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    """Returns whether the model encodes inputs, and decodes one token with their memory."""
    try:
        memory = reference_memory(model, tuple(inputs.values()))
        if not has_custom_step(model):
            reference_logits(model, memory, torch.ones(len(memory[0]), 1, dtype=torch.int64))
    except Exception:  # whatever the user's code raises
        return False
    return True

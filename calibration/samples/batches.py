"""Inputs of equal shape run together: fewer calls for the same tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import InputError

_MOST_WAITING = 64
"""At most so many sequences wait in memory for others of their shape."""

SampleRow: TypeAlias = tuple[int, int]
"""Where a sequence comes from: the number of the sample, and the row within it."""

_Shape: TypeAlias = tuple[tuple[str, np.dtype[np.generic], tuple[int, ...]], ...]
_Waiting: TypeAlias = list[tuple[SampleRow, Inputs]]


@dataclass(frozen=True)
class BatchSize:
    """How many sequences the graphs of a variant take at once.

    Attributes:
        largest: at most so many.
        is_fixed: always so many.
    """

    largest: int
    is_fixed: bool = False


@dataclass(frozen=True)
class Batch:
    """Sequences that run together.

    Attributes:
        places: where each sequence comes from.
        inputs: encoder inputs by name, batch first; rows past the places repeat the last one.
    """

    sample_rows: tuple[SampleRow, ...]
    inputs: Inputs


def batch_size(bundle: Bundle, variant: str) -> BatchSize:
    """Returns the batch that a variant was exported for."""
    first = bundle.graph(variant, GraphRole.ENCODER).inputs[0].shape[0]
    if isinstance(first, int):
        return BatchSize(first, is_fixed=True)
    return BatchSize(bundle.manifest.dims[first].max)


def batches(samples: Iterable[Inputs], size: BatchSize) -> Iterator[Batch]:
    """Groups the sequences of samples by shape; those of one shape keep their order.

    Raises:
        InputError: the arrays of a sample disagree on how many sequences there are.
    """
    waiting: dict[_Shape, _Waiting] = {}
    for number, sample in enumerate(samples):
        for row, inputs in enumerate(_rows(sample)):
            shape = _shape(inputs)
            group = waiting.setdefault(shape, [])
            group.append(((number, row), inputs))
            if len(group) == size.largest:
                yield _joined(waiting.pop(shape), size)
            elif sum(map(len, waiting.values())) > _MOST_WAITING:
                fullest = max(waiting, key=lambda key: len(waiting[key]))
                yield _joined(waiting.pop(fullest), size)
    for group in waiting.values():
        yield _joined(group, size)


def _rows(sample: Inputs) -> Iterator[Inputs]:
    counts = {array.shape[0] if array.ndim else 0 for array in sample.values()}
    if len(counts) != 1 or counts == {0}:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in sample.items())
        raise InputError(
            f"the arrays of a sample need the same number of sequences, batch first; got {shapes}"
        )
    for row in range(counts.pop()):
        yield {name: array[row : row + 1] for name, array in sample.items()}


def _shape(inputs: Inputs) -> _Shape:
    return tuple((name, inputs[name].dtype, inputs[name].shape) for name in sorted(inputs))


def _joined(group: _Waiting, size: BatchSize) -> Batch:
    places = tuple(place for place, _ in group)
    rows = [inputs for _, inputs in group]
    if size.is_fixed:
        rows += rows[-1:] * (size.largest - len(rows))
    return Batch(places, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]})

"""Groups sequences of equal shape into batches, so that fewer calls decode the same tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import InputError

_MAX_PENDING = 64
"""The largest number of sequences that are held in RAM until their batch is full."""

SampleRow: TypeAlias = tuple[int, int]
"""Origin of a sequence: the index of its sample, and the index of its row within the sample."""

_Shape: TypeAlias = tuple[tuple[str, np.dtype[np.generic], tuple[int, ...]], ...]
_Group: TypeAlias = list[tuple[SampleRow, Inputs]]


@dataclass(frozen=True)
class BatchSize:
    """How many sequences the graphs of a variant take in one call.

    Attributes:
        largest: the largest number of sequences.
        is_fixed: whether every call must have exactly that number of sequences.
    """

    largest: int
    is_fixed: bool = False


@dataclass(frozen=True)
class Batch:
    """Sequences that are decoded in one batch.

    Attributes:
        sample_rows: the origin of each sequence.
        inputs: encoder inputs by name, batch first. A batch of fixed size may have more rows than
            `sample_rows`; these repeat the last sequence.
    """

    sample_rows: tuple[SampleRow, ...]
    inputs: Inputs


def batch_size(bundle: Bundle, variant: str) -> BatchSize:
    """Returns the batch size that a variant was exported for."""
    batch_dim = bundle.graph(variant, GraphRole.ENCODER).inputs[0].shape[0]
    if isinstance(batch_dim, int):
        return BatchSize(batch_dim, is_fixed=True)
    return BatchSize(bundle.manifest.dims[batch_dim].max)


def batches(samples: Iterable[Inputs], size: BatchSize) -> Iterator[Batch]:
    """Yields batches of sequences of equal shape; those of one shape keep their order.

    Args:
        samples: encoder inputs by name, batch first; each row is one sequence.
        size: the largest number of sequences of a batch, and whether it is fixed.

    Raises:
        InputError: the arrays of a sample differ in their number of sequences.
    """
    pending: dict[_Shape, _Group] = {}
    for index, sample in enumerate(samples):
        for row, inputs in enumerate(_rows(sample)):
            shape = _shape(inputs)
            group = pending.setdefault(shape, [])
            group.append(((index, row), inputs))
            if len(group) == size.largest:
                yield _concatenated(pending.pop(shape), size)
            elif sum(map(len, pending.values())) > _MAX_PENDING:
                fullest = max(pending, key=lambda key: len(pending[key]))
                yield _concatenated(pending.pop(fullest), size)
    for group in pending.values():
        yield _concatenated(group, size)


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


def _concatenated(group: _Group, size: BatchSize) -> Batch:
    sample_rows = tuple(sample_row for sample_row, _ in group)
    rows = [inputs for _, inputs in group]
    if size.is_fixed:
        rows += rows[-1:] * (size.largest - len(rows))
    return Batch(
        sample_rows, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    )

"""Reshapes rows picked from a table so that they broadcast into a result with a batch axis.

A table per position has no batch axis of its own, but each sequence of a batch may be at another
position. Example: a bias (1, H, L, L) is added to scores (B, H, L, L); R new rows per sequence.

    several rows   picked (B, R, H * L) -> (B, R, H, L) -> (B, H, R, L)
    single row     picked (B, H * L)    -> (B, H, L)

    heads folded into the batch, scores (B * H, L, L), bias (H, L, L)
    several rows   picked (B, R, H * L) -> (B, R, H, L) -> (B, H, R, L) -> (B * H, R, L)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Alignment:
    """The axes of a result into which operands broadcast.

    Attributes:
        rank: number of dimensions of the result of a full sequence.
        rows: axis of the tokens being decoded, counted from the end; None if there is none.
        batch: axis of the batch, counted from the end; None if there is none.
        fold_factor: number of values (heads) of one sequence that are folded into the batch axis.
    """

    rank: int
    rows: int | None
    batch: int | None
    fold_factor: int = 1


def align_rows(
    picked: Tensor, row_shape: tuple[int, ...], alignment: Alignment, *, single: bool
) -> Tensor:
    """Returns picked rows of a table in a shape that broadcasts into a result.

    Args:
        picked: (batch, values) for a single row, (batch, length, values) for several.
        row_shape: shape of the values of one row: the table's dimensions, at the result's rank,
            without the row axis. It contains the batch axis, of size one or of the fold factor.
        alignment: the axes of the result.
        single: whether `picked` holds a single row per sequence.
    """
    assert alignment.batch is not None and alignment.rows is not None
    batch, rows = alignment.batch + alignment.rank, alignment.rows + alignment.rank
    batch_in_row = batch - 1 if batch > rows else batch
    leading_axes, folded = (1 if single else 2), row_shape[batch_in_row]
    value_sizes = [*row_shape[:batch_in_row], *row_shape[batch_in_row + 1 :]]
    if folded != 1:
        # The values of one sequence move beside the batch axis and are folded into it.
        picked = torch.unflatten(picked, leading_axes, row_shape)
        folded_axis = leading_axes + batch_in_row
        remaining = [axis for axis in range(1, picked.dim()) if axis != folded_axis]
        picked = picked.permute(0, folded_axis, *remaining).flatten(0, 1)
    elif not value_sizes:
        picked = picked.squeeze(leading_axes)
    elif len(value_sizes) != 1:
        picked = torch.unflatten(picked, leading_axes, value_sizes)
    order = list(range(leading_axes, leading_axes + len(value_sizes)))
    for axis, source in sorted([(batch, 0)] if single else [(batch, 0), (rows, 1)]):
        order.insert(batch_in_row if single else axis, source)
    value = picked if order == sorted(order) else picked.permute(order)
    return repeat_elements(value, alignment.fold_factor // folded, order.index(0))


def repeat_elements(value: Tensor, times: int, axis: int) -> Tensor:
    """Returns a tensor in which every element is repeated `times` times along an axis."""
    return value if times == 1 else value.repeat_interleave(times, axis)


def squeeze_axis(value: Any, axis: int | None) -> Any:
    """Returns a tensor without an axis of size one, counted from the end, if it has that axis.

    Anything else than a tensor is returned as it is.
    """
    if axis is None or not isinstance(value, Tensor) or value.dim() < -axis:
        return value
    return value.squeeze(axis)

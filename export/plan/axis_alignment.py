"""Where the axes of a result are, and bringing values per position to their places in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Alignment:
    """Where the axes of a result are, for operands that broadcast into it.

    Attributes:
        rank: number of dimensions at full length.
        rows: axis of the tokens being decoded, from the end; None if there is none.
        batch: axis of the batch, from the end; None if there is none.
        folded: how many values are folded into the batch axis for each sequence.
    """

    rank: int
    rows: int | None
    batch: int | None
    folded: int = 1


def place(picked: Tensor, rest: tuple[int, ...], into: Alignment, *, single: bool) -> Tensor:
    """Shapes picked rows (batch, [length,] values) like the result that they broadcast into.

    `rest` is the shape of one row's values: the result's dimensions without its row axis.
    """
    assert into.batch is not None and into.rows is not None
    batch, rows = into.batch + into.rank, into.rows + into.rank
    batch_in_rest = batch - 1 if batch > rows else batch
    lead, folded = (1, rest[batch_in_rest]) if single else (2, rest[batch_in_rest])
    others = [*rest[:batch_in_rest], *rest[batch_in_rest + 1 :]]
    if folded != 1:
        # what belongs to one sequence moves beside the batch and is folded into it
        picked = torch.unflatten(picked, lead, rest)
        moved = lead + batch_in_rest
        behind = [axis for axis in range(1, picked.dim()) if axis != moved]
        picked = picked.permute(0, moved, *behind).flatten(0, 1)
    elif not others:
        picked = picked.squeeze(lead)
    elif len(others) != 1:
        picked = torch.unflatten(picked, lead, others)
    order = list(range(lead, lead + len(others)))
    for axis, source in sorted([(batch, 0)] if single else [(batch, 0), (rows, 1)]):
        order.insert(batch_in_rest if single else axis, source)
    value = picked if order == sorted(order) else picked.permute(order)
    return repeat(value, into.folded // folded, order.index(0))


def repeat(value: Tensor, times: int, axis: int) -> Tensor:
    """Repeats every element along an axis."""
    return value if times == 1 else value.repeat_interleave(times, axis)


def without_axis(value: Any, axis: int | None) -> Any:
    """Drops an axis of size one, counted from the end, if a value reaches that far."""
    if axis is None or not isinstance(value, Tensor) or value.dim() < -axis:
        return value
    return value.squeeze(axis)

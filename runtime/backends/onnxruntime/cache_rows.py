"""Reorders the sequences of caches and memory tensors, with as few copies as possible."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.runtime.backends.protocol import IntArray

Number = TypeVar("Number", bound=np.generic)


def moved_rows(rows: IntArray) -> IntArray:
    """Returns the indexes i at which rows[i] is not i; empty if no sequence moves."""
    return np.flatnonzero(rows != np.arange(len(rows)))


def move_rows(array: NDArray[Number], rows: IntArray) -> None:
    """Copies row rows[i] to row i for all i, in place; rows that do not move are not written."""
    moved = moved_rows(rows)
    if len(moved):
        array[moved] = array[rows[moved]]


def inputs_of(rows: IntArray, beams: int) -> tuple[IntArray, int]:
    """Returns the inputs of chosen sequences, and the number of sequences per input.

    Args:
        rows: indexes of the chosen sequences, (n,) int64.
        beams: number of sequences of an input; they are side by side.

    Returns:
        Indexes of the inputs (n / beams,) int64, and `beams`, if each group of `beams` chosen
        sequences has one input. Otherwise the input of each sequence (n,) int64, and 1.
    """
    inputs = rows // beams
    groups = inputs.reshape(-1, beams) if len(rows) % beams == 0 else inputs[:, None]
    together = (groups == groups[:, :1]).all()
    return (groups[:, 0], groups.shape[1]) if together else (inputs, 1)


def filled_part(cache: NDArray[Number], capacity: int, filled: int) -> NDArray[Number]:
    """Returns a view of the cache positions that hold tokens.

    Args:
        cache: (batch, heads, positions, width). The last `capacity` positions are for tokens; in a
            decoder-only model, positions of the memory precede them.
        capacity: number of positions for tokens.
        filled: number of tokens in the cache.
    """
    first = cache.shape[-2] - capacity
    return cache[..., first : first + filled, :]


def chosen_rows(cache: NDArray[Number], rows: IntArray, end: int) -> NDArray[Number]:
    """Returns a copy of chosen sequences of a cache up to position `end`; the rest is zero.

    Args:
        cache: (batch, heads, positions, width).
        rows: indexes of the chosen sequences, (n,) int64.
        end: number of positions to copy.
    """
    chosen = np.zeros((len(rows), *cache.shape[1:]), cache.dtype)
    np.take(cache[..., :end, :], rows, axis=0, out=chosen[..., :end, :])
    return chosen

"""Sequences that change places: rows of caches and memory, moved with as few copies as possible."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.runtime.backends.protocol import IntArray

Number = TypeVar("Number", bound=np.generic)


def moved_rows(rows: IntArray) -> IntArray:
    """Returns the places where another sequence comes; none if all stay."""
    return np.flatnonzero(rows != np.arange(len(rows)))


def move_rows(array: NDArray[Number], rows: IntArray) -> None:
    """Puts what row rows[i] was into row i, in place; rows that stay are not touched."""
    moved = moved_rows(rows)
    if len(moved):
        array[moved] = array[rows[moved]]


def inputs_of(rows: IntArray, beams: int) -> tuple[IntArray, int]:
    """Returns the inputs that chosen sequences have, and how many of them share one.

    Args:
        rows: (n,), the sequences.
        beams: how many sequences of an input there are, side by side.

    Returns:
        inputs (n / beams,) and `beams` where the beams of each stay together; else (n,) and 1.
    """
    inputs = rows // beams
    groups = inputs.reshape(-1, beams) if len(rows) % beams == 0 else inputs[:, None]
    together = (groups == groups[:, :1]).all()
    return (groups[:, 0], groups.shape[1]) if together else (inputs, 1)


def filled_part(cache: NDArray[Number], capacity: int, filled: int) -> NDArray[Number]:
    """Returns a view of what tokens have written.

    Args:
        cache: (batch, heads, rows, width); rows may begin with the memory, `capacity` are for
            tokens.
        capacity: how many tokens the cache holds.
        filled: how many it holds now.
    """
    before = cache.shape[-2] - capacity
    return cache[..., before : before + filled, :]


def chosen_rows(cache: NDArray[Number], rows: IntArray, end: int) -> NDArray[Number]:
    """Copies some rows of a cache up to position `end`; what lies behind is zero."""
    chosen = np.zeros((len(rows), *cache.shape[1:]), cache.dtype)
    np.take(cache[..., :end, :], rows, axis=0, out=chosen[..., :end, :])
    return chosen

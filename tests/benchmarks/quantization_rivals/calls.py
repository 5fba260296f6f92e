"""Recorded calls of a graph: written to a file, read back, and served as calibration data.

The rivals' jobs import this module in their own environments, so it imports only numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Call = Mapping[str, NDArray[Any]]
"""Input arrays of one call of a graph, by input name."""


def write_calls(path: Path, calls: Sequence[Call]) -> None:
    """Writes calls to an .npz file; the array `index/input` is one input of one call."""
    arrays = {
        f"{index}/{name}": array for index, call in enumerate(calls) for name, array in call.items()
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]


def read_calls(path: Path) -> list[Call]:
    """Reads the calls from a file of `write_calls`."""
    calls: dict[int, dict[str, NDArray[Any]]] = {}
    with np.load(path) as file:
        for key in file.files:
            index, _, name = key.partition("/")
            calls.setdefault(int(index), {})[name] = file[key]
    return [calls[index] for index in sorted(calls)]


class CallReader:
    """Serves calls with the methods of onnxruntime's and modelopt's calibration data readers."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = [dict(call) for call in calls]
        self.rewind()

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls)

    def get_next(self) -> Call | None:
        """Returns the next call; None after the last one."""
        return next(self._remaining, None)

    def get_first(self) -> Call:
        """Returns the first call and leaves the position of `get_next` as it is."""
        return self._calls[0]

    def rewind(self) -> None:
        """Makes `get_next` start again at the first call."""
        self._remaining = iter(self._calls)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Makes `get_next` return only the calls from start_index to before end_index."""
        self._remaining = iter(self._calls[start_index:end_index])

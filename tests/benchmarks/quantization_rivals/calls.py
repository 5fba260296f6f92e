"""The recorded calls of a graph, in a file and as calibration data.

The rivals' jobs import it in their own environment: it needs only numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Call = Mapping[str, NDArray[Any]]
"""The inputs of one call of a graph, by name."""


def write_calls(path: Path, calls: Sequence[Call]) -> None:
    """Writes calls as `index/input` arrays of an .npz file."""
    arrays = {
        f"{index}/{name}": array for index, call in enumerate(calls) for name, array in call.items()
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]


def read_calls(path: Path) -> list[Call]:
    """Reads what `write_calls` wrote."""
    calls: dict[int, dict[str, NDArray[Any]]] = {}
    with np.load(path) as file:
        for key in file.files:
            index, _, name = key.partition("/")
            calls.setdefault(int(index), {})[name] = file[key]
    return [calls[index] for index in sorted(calls)]


class CallReader:
    """Hands out calls as onnxruntime's CalibrationDataReader and modelopt's own readers do."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = [dict(call) for call in calls]
        self.rewind()

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls)

    def get_next(self) -> Call | None:
        """Returns the next call, None after the last."""
        return next(self._left, None)

    def get_first(self) -> Call:
        """Returns the first call, which stays to be read."""
        return self._calls[0]

    def rewind(self) -> None:
        """Begins anew."""
        self._left = iter(self._calls)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Lets `get_next` give only these calls."""
        self._left = iter(self._calls[start_index:end_index])

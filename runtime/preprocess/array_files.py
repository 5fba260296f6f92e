"""Reads the encoder's inputs, as they are, from `.npy` and `.npz` files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.errors import InputError

ARRAYS_SUFFIX = ".npz"
"""Suffix of the files that hold several arrays by name."""

UNREADABLE = (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What numpy raises for a file that holds no arrays, or damaged ones."""


def load_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Returns the arrays of the encoder's inputs, in the order of `names`, batch first.

    Args:
        path: a `.npz` file with an array for each name; with one name, a `.npy` file too.
        names: names of the encoder's inputs.

    Raises:
        InputError: the file cannot be read, lacks an array, or holds a single number.
    """
    kind = ARRAYS_SUFFIX if len(names) > 1 else ".npy"
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {names[0]: loaded}
        else:
            with loaded:
                arrays = {name: loaded[name] for name in names if name in loaded.files}
    except UNREADABLE as error:
        raise InputError(f"{path} is not a {kind} array: {error}") from error
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; give a .npz file with these arrays")
    if any(array.ndim == 0 for array in arrays.values()):
        raise InputError(f"{path} holds a single number; its arrays must be batch first")
    return arrays

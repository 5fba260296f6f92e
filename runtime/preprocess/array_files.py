"""Reads the encoder's inputs, as they are, from `.npy` and `.npz` files.

An array is allocated only after its header fits the bytes that are there, so neither a false header
nor a file that unpacks to far more than its size fills the RAM.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from hybrid_deploy.errors import InputError
from hybrid_deploy.input_files import check_file, read_errors

ARRAYS_SUFFIX = ".npz"
"""Suffix of the files that hold several arrays by name."""

LARGEST_BYTES = 1 << 30
"""Largest size of the arrays of one file, unpacked."""

_ARRAY_SUFFIX = ".npy"
_NUMBERS = "biufcV"  # kinds of dtypes; V is bfloat16 in a file
_ZIP_BEGINS = b"PK"
_LARGEST_HEADER = 10_000  # bytes; numpy parses no longer one, and names a way that is not safe
_Header: TypeAlias = tuple[tuple[int, ...], bool, Any]  # shape, whether by columns, dtype
_READERS: dict[tuple[int, int], tuple[struct.Struct, Callable[[IO[bytes]], _Header]]] = {
    (1, 0): (struct.Struct("<H"), npy.read_array_header_1_0),
    (2, 0): (struct.Struct("<I"), npy.read_array_header_2_0),
}


def load_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Returns the arrays of the encoder's inputs, in the order of `names`, batch first.

    Args:
        path: a `.npz` file with an array for each name; with one name, a `.npy` file too.
        names: names of the encoder's inputs.

    Raises:
        InputError: the file cannot be read, lacks an array, holds a single number, or unpacks to
            more than 1 GB.
    """
    check_file(path)
    if _is_zip(path):
        arrays = read_npz(path, names)
    else:
        kind = ARRAYS_SUFFIX if len(names) > 1 else _ARRAY_SUFFIX
        arrays = {names[0]: _read_npy(path, kind)}
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; give a .npz file with these arrays")
    if any(array.ndim == 0 for array in arrays.values()):
        raise InputError(f"{path} holds a single number; its arrays must be batch first")
    return arrays


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Returns the arrays of a `.npz` file by name.

    Args:
        path: the file.
        names: names of the arrays to read, in this order; those that are missing are left out.
            None reads all.

    Raises:
        InputError: the file cannot be read, or unpacks to more than 1 GB.
    """
    # zipfile, zlib and numpy raise many kinds for damaged files
    with (
        read_errors(path, f"is a damaged {ARRAYS_SUFFIX} file"),
        zipfile.ZipFile(path) as archive,
    ):
        members = {m.filename.removesuffix(_ARRAY_SUFFIX): m for m in archive.infolist()}
        chosen = [name for name in (members if names is None else names) if name in members]
        _check_size(sum(members[name].file_size for name in chosen), path)
        arrays = {}
        for name in chosen:
            with archive.open(members[name]) as file:
                arrays[name] = _array(file, members[name].file_size)
        return arrays


def _read_npy(path: Path, kind: str) -> NDArray[Any]:
    size_bytes = path.stat().st_size
    _check_size(size_bytes, path)
    # numpy parses headers as Python, which fails in many ways
    with read_errors(path, f"is not a {kind} array"), path.open("rb") as file:
        return _array(file, size_bytes)


def _is_zip(path: Path) -> bool:
    with read_errors(path, "is no file of arrays"), path.open("rb") as file:
        return file.read(len(_ZIP_BEGINS)) == _ZIP_BEGINS


def _check_size(size_bytes: int, path: Path) -> None:
    if size_bytes > LARGEST_BYTES:
        raise InputError(
            f"{path} holds {size_bytes / 1e9:.1f} GB of arrays, over {LARGEST_BYTES / 1e9:.1f}; "
            "split it into several files"
        )


def _array(file: IO[bytes], size_bytes: int) -> NDArray[Any]:
    """Reads one array in the format of numpy.

    Args:
        file: an opened `.npy` file, at its begin.
        size_bytes: size of the file.

    Raises:
        ValueError: it is no array, an array of objects, or larger than the file.
    """
    version = npy.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"its format has version {version[0]}.{version[1]}")
    shape, by_columns, dtype = _header(file, version)
    if dtype.kind not in _NUMBERS:
        raise ValueError(f"it holds {dtype}, numbers were expected")
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape is {shape}")
    wanted_bytes = math.prod(shape) * dtype.itemsize
    if wanted_bytes > size_bytes:
        raise ValueError(f"it ends too early: {shape} of {dtype} are {wanted_bytes} bytes")
    content = np.empty(wanted_bytes, np.uint8)
    free = content.data
    while len(free) and (count := file.readinto(free)):  # type: ignore[attr-defined]
        free = free[count:]
    if len(free):
        raise ValueError(f"it ends too early: {len(free)} of {wanted_bytes} bytes are missing")
    flat: NDArray[Any] = content.view(dtype)
    return flat.reshape(shape[::-1]).T if by_columns else flat.reshape(shape)


def _header(file: IO[bytes], version: tuple[int, int]) -> _Header:
    """Reads the header behind the magic string of a `.npy` file.

    Raises:
        ValueError: it is longer than that of any array of numbers, or it is no header.
    """
    length, read = _READERS[version]
    size_field = file.read(length.size)
    size_bytes = length.unpack(size_field)[0]
    if size_bytes > _LARGEST_HEADER:
        raise ValueError(f"its header has {size_bytes} bytes, over {_LARGEST_HEADER}")
    try:
        return read(io.BytesIO(size_field + file.read(size_bytes)))
    except MemoryError as error:  # what Python's parser raises for too deep a nesting
        raise ValueError("its header is nested too deep") from error

"""A folder of this process alone, for files that a library opens by their paths and maps.

A mapped file changes under the process that maps it, and a file that is cut ends that process. A
copy that nobody else knows does neither. It lies in RAM where there is a file system for that, its
path is gone as soon as the library has mapped it, and the parts that the library does not map, or
no longer, are freed: then it takes exactly the RAM of what is mapped.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.host.large_pages import AddressRange, subtract_ranges
from hybrid_deploy.scratch import scratch_folder

_IN_RAM = Path("/dev/shm")
_MAPS = Path("/proc/self/maps")
_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, fallocate(2)


@contextmanager
def private_folder(size_bytes: int) -> Iterator[Path]:
    """Yields an empty folder with room for files; at the end, only what is mapped of them stays.

    Folders that a killed process left behind are removed first.

    Args:
        size_bytes: size of all files together.

    Raises:
        BackendError: no file system has room for them.
    """
    with scratch_folder("weights", _with_room(size_bytes)) as folder:
        try:
            yield folder
        finally:
            for path in folder.iterdir():
                _free_unmapped(path)


def _with_room(size_bytes: int) -> Path:
    """Returns a folder for temporary files: one in RAM, or else the usual one."""
    candidates = [_IN_RAM, Path(tempfile.gettempdir())]
    for candidate in candidates:
        with suppress(OSError):
            status = os.statvfs(candidate)
            if status.f_bavail * status.f_frsize > size_bytes and os.access(candidate, os.W_OK):
                return candidate
    raise BackendError(
        f"loading needs {size_bytes / 1e6:.0f} MB for a copy of the weights, and neither "
        f"{' nor '.join(map(str, candidates))} has room; name another folder in $TMPDIR"
    )


def _free_unmapped(path: Path) -> None:
    """Frees the parts of a file that this process does not map; a file system may refuse."""
    with path.open("r+b") as file:
        status = os.fstat(file.fileno())
        fallocate = ctypes.CDLL(None).fallocate
        fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        for begin, end in subtract_ranges([(0, status.st_size)], _mapped(status.st_ino)):
            fallocate(file.fileno(), _PUNCH_HOLE, begin, end - begin)


def _mapped(inode: int) -> list[AddressRange]:
    """Returns the ranges of a file that this process maps, in ascending order and disjoint."""
    ranges: list[AddressRange] = []
    for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        addresses, _, offset, _, number, *_ = line.split(maxsplit=5)
        if int(number) == inode:
            first, last = (int(address, 16) for address in addresses.split("-"))
            ranges.append((int(offset, 16), int(offset, 16) + last - first))
    return _merged(sorted(ranges))


def _merged(ranges: list[AddressRange]) -> list[AddressRange]:
    merged: list[AddressRange] = []
    for begin, end in ranges:
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged

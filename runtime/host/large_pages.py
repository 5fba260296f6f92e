"""Moves the weights and buffers of a loaded model onto large pages of RAM.

To decode one token, the CPU reads tens of megabytes. With pages of 4 KB it translates thousands of
addresses for that, and each one through two tables inside a virtual machine. Linux moves RAM onto
pages of 2 MB on request (madvise(2), transparent huge pages). Measured once on a virtual machine
with one thread, generations of the models of `make bench` took 0 to 11 % less time.

Moving 100 MB takes about 100 ms, once. A process that generates only once does not profit from
that, so the pages move when a second input arrives. On a kernel without large pages nothing
happens; a kernel before 6.1 moves the pages later, in the background.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from pathlib import Path
from typing import TypeAlias

AddressRange: TypeAlias = tuple[int, int]
"""First address of a range, and the address behind its last byte."""

_MAPS = Path("/proc/self/maps")
_PAGE_BYTES = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_ADVISE, _COLLAPSE = 14, 25  # MADV_HUGEPAGE, MADV_COLLAPSE
_NAMED_FIELDS = 6  # a line of a mapping that has a name has at least so many fields


class LargePages:
    """The RAM that this process maps after this object is made; its second use moves it.

    Several threads may use one object.
    """

    def __init__(self) -> None:
        self._before = anonymous_ranges()
        self._uses = 0
        self._lock = threading.Lock()

    def use(self) -> None:
        """Counts one use of the mapped RAM; the second use moves it onto large pages."""
        if self._uses > 1:
            return
        with self._lock:
            self._uses += 1
            if self._uses == 2:
                collapse(subtract_ranges(anonymous_ranges(), self._before))


def anonymous_ranges(maps: Path = _MAPS) -> list[AddressRange]:
    """Returns the writable addresses of this process that belong to no file.

    The ranges ascend. The list is empty where there is no /proc.
    """
    try:
        lines = maps.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    fields = [line.split() for line in lines]
    anonymous = [
        f for f in fields if f[1] == "rw-p" and (len(f) < _NAMED_FIELDS or f[5] == "[heap]")
    ]
    bounds = (mapping[0].partition("-") for mapping in anonymous)
    return [(int(first, 16), int(end, 16)) for first, _, end in bounds]


def subtract_ranges(ranges: list[AddressRange], excluded: list[AddressRange]) -> list[AddressRange]:
    """Returns the parts of `ranges` outside `excluded`; both lists must ascend, as /proc does."""
    remaining: list[AddressRange] = []
    for begin, end in ranges:
        overlaps = [bounds for bounds in excluded if bounds[0] < end and bounds[1] > begin]
        begins = [begin, *(last for _, last in overlaps)]
        ends = [*(first for first, _ in overlaps), end]
        remaining += [gap for gap in zip(begins, ends, strict=True) if gap[0] < gap[1]]
    return remaining


def collapse(ranges: list[AddressRange]) -> None:
    """Asks the kernel to move ranges onto large pages, wherever a whole large page fits.

    A kernel that refuses is no error: the range then stays on small pages.
    """
    size = _page_bytes()
    if size is None or not sys.platform.startswith("linux"):
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for begin, end in ranges:
        first, last = -(-begin // size) * size, end // size * size
        if first < last:
            advise(first, last - first, _ADVISE)
            advise(first, last - first, _COLLAPSE)


def _page_bytes() -> int | None:
    try:
        return int(_PAGE_BYTES.read_text())
    except (OSError, ValueError):
        return None

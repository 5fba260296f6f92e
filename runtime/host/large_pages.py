"""Weights and memory on large pages.

A token reads tens of megabytes, in pages of 4 KB: thousands of addresses that the CPU has to look
up, in two tables each inside a virtual machine. Linux moves memory onto pages of 2 MB if it is
asked (madvise(2), transparent huge pages). Measured once beside a process that did not ask, on a
virtual machine with one thread, generations of the models of `make bench` took 0 to 11 % less.

Moving 100 MB takes some 100 ms once. Whoever generates once only should not pay that, so it is
done when a second input comes. Where the kernel does not offer it nothing happens; kernels before
6.1 move the pages when they find time.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from pathlib import Path
from typing import TypeAlias

Range: TypeAlias = tuple[int, int]
"""Addresses, from the first to behind the last."""

_MAPS = Path("/proc/self/maps")
_PAGE_BYTES = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_ADVISE, _COLLAPSE = 14, 25  # MADV_HUGEPAGE, MADV_COLLAPSE
_NAMED = 6  # fields of a mapping that has a name


class LargePages:
    """What is mapped from now on, to be moved onto large pages when it is used again.

    Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._before = anonymous_ranges()
        self._uses = 0
        self._lock = threading.Lock()

    def use(self) -> None:
        """Counts one use; the second one moves the pages."""
        if self._uses > 1:
            return
        with self._lock:
            self._uses += 1
            if self._uses == 2:
                collapse(without(anonymous_ranges(), self._before))


def anonymous_ranges(maps: Path = _MAPS) -> list[Range]:
    """Returns the memory of this process that belongs to no file; none without /proc."""
    try:
        lines = maps.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    fields = [line.split() for line in lines]
    own = [f for f in fields if f[1] == "rw-p" and (len(f) < _NAMED or f[5] == "[heap]")]
    bounds = (each[0].partition("-") for each in own)
    return [(int(first, 16), int(end, 16)) for first, _, end in bounds]


def without(ranges: list[Range], others: list[Range]) -> list[Range]:
    """Takes other ranges out of ranges; both ascend, as /proc lists them."""
    left: list[Range] = []
    for begin, end in ranges:
        inside = [other for other in others if other[0] < end and other[1] > begin]
        begins = [begin, *(last for _, last in inside)]
        ends = [*(first for first, _ in inside), end]
        left += [gap for gap in zip(begins, ends, strict=True) if gap[0] < gap[1]]
    return left


def collapse(ranges: list[Range]) -> None:
    """Asks for large pages wherever a whole one fits into a range; refusals are no errors."""
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

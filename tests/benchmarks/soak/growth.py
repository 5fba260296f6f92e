"""What a process holds, and whether it grows from one generation to the next."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_STATM = Path("/proc/self/statm")
_FDS = Path("/proc/self/fd")

LARGEST_GROWTH_BYTES = 4_000_000
"""Of a whole soak: what allocators keep varies by one or two MB."""


@dataclass(frozen=True)
class Growth:
    """What a process holds more at the end of a soak than after its beginning.

    Attributes:
        runs: how many generations there were in between.
        descriptors: open files.
        resident_bytes: memory; the smaller of two differences, between the ends and from the
            middle, so that a single step of an allocator does not count twice.
    """

    runs: int
    descriptors: int
    resident_bytes: int

    @property
    def leaks(self) -> bool:
        """Whether it grew more than by chance."""
        return self.descriptors > 0 or self.resident_bytes > LARGEST_GROWTH_BYTES


def soak(work: Callable[[int], object], runs: int, warmup: int) -> Growth:
    """Does something again and again, and measures what stays.

    Args:
        work: takes the number of the run.
        runs: how many are measured.
        warmup: how many come first, in which caches fill.
    """
    for number in range(warmup):
        work(number)
    descriptors, begin = _held()
    for number in range(runs // 2):
        work(number)
    _, middle = _held()
    for number in range(runs // 2, runs):
        work(number)
    at_end, end = _held()
    return Growth(runs, at_end - descriptors, min(end - begin, 2 * (end - middle)))


def _held() -> tuple[int, int]:
    """Returns the number of open files, and the resident bytes."""
    gc.collect()
    pages = int(_STATM.read_text().split()[1])
    return len(list(_FDS.iterdir())), pages * os.sysconf("SC_PAGE_SIZE")

"""Measures how much RAM and how many open files a process gains over many runs."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_STATM = Path("/proc/self/statm")
_FDS = Path("/proc/self/fd")

LARGEST_GROWTH_BYTES = 4_000_000
"""Largest allowed growth of a whole soak; RAM kept by allocators varies by one or two MB."""


@dataclass(frozen=True)
class Growth:
    """Growth of a process between the warm-up and the end of a soak.

    Attributes:
        runs: number of measured runs.
        descriptors: number of additional open files.
        resident_bytes: additional resident RAM: the smaller of the growth over all runs and twice
            the growth over their second half, so that one step of an allocator is no leak.
    """

    runs: int
    descriptors: int
    resident_bytes: int

    @property
    def leaks(self) -> bool:
        """Whether open files or resident RAM grew beyond the limits."""
        return self.descriptors > 0 or self.resident_bytes > LARGEST_GROWTH_BYTES


def soak(work: Callable[[int], object], runs: int, warmup: int) -> Growth:
    """Calls a function many times and measures the growth of the process.

    Args:
        work: function to call with the number of the run.
        runs: number of measured runs.
        warmup: number of runs before them, in which caches fill.
    """
    for number in range(warmup):
        work(number)
    files_before, bytes_before = _usage()
    for number in range(runs // 2):
        work(number)
    _, bytes_halfway = _usage()
    for number in range(runs // 2, runs):
        work(number)
    files_after, bytes_after = _usage()
    resident_bytes = min(bytes_after - bytes_before, 2 * (bytes_after - bytes_halfway))
    return Growth(runs, files_after - files_before, resident_bytes)


def _usage() -> tuple[int, int]:
    """Returns the number of open files and the resident bytes of this process."""
    resident = resident_bytes()
    return len(list(_FDS.iterdir())), resident


def resident_bytes() -> int:
    """Returns the resident bytes of this process, after the garbage is collected."""
    gc.collect()
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

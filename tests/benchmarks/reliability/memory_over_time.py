"""Measures the memory of a process that generates for some time, after a warm-up.

Run as `python -m tests.benchmarks.reliability.memory_over_time BUNDLE PICTURE SECONDS LEAKED`. It
is a process of its own without PyTorch, since a process that did other work before has freed RAM
that a leak could fill unseen.
"""

from __future__ import annotations

import json
import mmap
import sys
import time
from pathlib import Path

from hybrid_deploy.runtime.session.session import load_session
from tests.benchmarks.soak.growth import resident_bytes
from tests.benchmarks.soak.workload import Workload

WARM_UP = 0.4
"""Part of the time in which caches and the arenas of the allocator fill."""

_MEASUREMENTS = 200

Measurement = tuple[float, int]
"""Time in seconds and resident bytes."""


def measure(bundle: Path, picture: Path, seconds: float, leaked_bytes: int) -> list[Measurement]:
    """Generates for some time; returns what was measured after the warm-up."""
    workload, leaked = Workload(load_session(bundle, threads=1), picture), list[mmap.mmap]()
    start, number, measurements = time.monotonic(), 0, list[Measurement]()
    pause = (1 - WARM_UP) * seconds / _MEASUREMENTS
    while (now := time.monotonic() - start) < seconds:
        workload(number)
        if leaked_bytes:  # pages of their own: the heap could have room that was freed before
            leaked.append(mmap.mmap(-1, leaked_bytes))
            leaked[-1].write(b"x" * leaked_bytes)
        number += 1
        if now > WARM_UP * seconds + len(measurements) * pause:
            measurements.append((now, resident_bytes()))
    return measurements


if __name__ == "__main__":
    bundle, picture, seconds, leaked_bytes = sys.argv[1:]
    found = measure(Path(bundle), Path(picture), float(seconds), int(leaked_bytes))
    print(json.dumps(found))

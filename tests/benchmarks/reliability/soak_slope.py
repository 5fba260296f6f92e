"""A soak whose memory is measured again and again: the slope of a line through it, per hour.

The workload is the one of `make soak`: generations of every kind, failing and abandoned ones too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hybrid_deploy.export.exporter import run_export
from tests.benchmarks.reliability.memory_over_time import WARM_UP, Measurement
from tests.benchmarks.reliability.row import Row
from tests.conftest import make_tiny, tiny_job

CONTROL = "64 KB are kept at every generation"

_CHILD = "tests.benchmarks.reliability.memory_over_time"
_ROOT = Path(__file__).parents[3]
_CONTROL_SECONDS, _LEAKED_BYTES = 4, 65536
_HOUR_S = 3600.0
_LARGEST_SLOPE = 1e6
"""Largest slope of a long soak in bytes per hour."""

_LONG_S = 1500
_NOISE_BYTES = 2e6
"""What the allocator may keep in a soak of less than `_LONG_S`, whose slope says little."""


def check(count: int, seed: int) -> Row:
    """Generates for some time, and fits a line through the memory after the warm-up.

    Args:
        count: time in seconds.
        seed: not used; the workload is the same every time.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        job, path, page = tiny_job(make_tiny()), Path(folder, "b"), Path(folder, "page.png")
        run_export(job, path)
        page.write_bytes(job.golden["page.png"])
        slope = slope_per_hour(_run_child(path, page, count, 0))
        leak = slope_per_hour(_run_child(path, page, _CONTROL_SECONDS, _LEAKED_BYTES))
    limit, result = largest_slope(count), f"{slope / 1e6:+.2f} MB an hour"
    faults = () if slope < limit else (f"{result}, at most {limit / 1e6:.2f} are allowed",)
    caught = leak > largest_slope(_CONTROL_SECONDS)
    seconds = time.perf_counter() - began
    return Row(f"a soak of {count:,} seconds", 1, result, faults, CONTROL, caught, seconds)


def largest_slope(seconds: float) -> float:
    """Returns the largest allowed slope of a soak, in bytes per hour."""
    if seconds >= _LONG_S:
        return _LARGEST_SLOPE
    return _NOISE_BYTES * _HOUR_S / ((1 - WARM_UP) * seconds)


def slope_per_hour(measurements: list[Measurement]) -> float:
    """Returns the median slope between any two measurements, in bytes per hour.

    A single step of the allocator does not change it (Theil, 1950; Sen, 1968).
    """
    seconds, resident = np.array(measurements, float).T
    first, second = np.triu_indices(len(seconds), 1)
    slopes = (resident[second] - resident[first]) / (seconds[second] - seconds[first])
    return float(np.median(slopes)) * _HOUR_S


def _run_child(bundle: Path, picture: Path, seconds: float, leaked_bytes: int) -> list[Measurement]:
    arguments = (bundle, picture, seconds, leaked_bytes)
    command = [sys.executable, "-m", _CHILD, *map(str, arguments)]
    done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, check=True)
    return [(when, resident) for when, resident in json.loads(done.stdout)]

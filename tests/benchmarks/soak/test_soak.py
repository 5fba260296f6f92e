"""A short form of `make soak`: nothing stays behind a generation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.soak.child import LEAKED_BYTES, RUNS, RUNS_PER_FILE
from tests.benchmarks.soak.growth import Growth

ROOT = Path(__file__).parents[3]


def soaked(bundle: Path, picture: Path, *leak: str) -> Growth:
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.soak.child",
        str(bundle),
        str(picture),
        *leak,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return Growth(**json.loads(done.stdout))


def test_generations_leave_nothing_behind(tiny_path: Path, page: Path) -> None:
    found = soaked(tiny_path, page)
    assert not found.leaks, found


def test_memory_that_leaks_is_caught(tiny_path: Path, page: Path) -> None:
    found = soaked(tiny_path, page, "memory")
    assert found.leaks and found.descriptors == 0
    assert found.resident_bytes > RUNS * LEAKED_BYTES * 0.8


def test_files_that_leak_are_caught(tiny_path: Path, page: Path) -> None:
    found = soaked(tiny_path, page, "files")
    assert found.leaks and found.descriptors == RUNS // RUNS_PER_FILE

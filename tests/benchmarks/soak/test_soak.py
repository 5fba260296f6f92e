"""Tests a short form of `make soak`: generations leak neither RAM nor open files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.soak.child import LEAKED_BYTES, RUNS, RUNS_PER_FILE
from tests.benchmarks.soak.growth import Growth

ROOT = Path(__file__).parents[3]


def run_soak(bundle: Path, picture: Path, *leak: str) -> Growth:
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


def test_generations_leak_nothing(tiny_path: Path, page: Path) -> None:
    growth = run_soak(tiny_path, page)
    assert not growth.leaks, growth


def test_leaked_memory_is_detected(tiny_path: Path, page: Path) -> None:
    growth = run_soak(tiny_path, page, "memory")
    assert growth.leaks and growth.descriptors == 0
    assert growth.resident_bytes > RUNS * LEAKED_BYTES * 0.8


def test_leaked_files_are_detected(tiny_path: Path, page: Path) -> None:
    growth = run_soak(tiny_path, page, "files")
    assert growth.leaks and growth.descriptors == RUNS // RUNS_PER_FILE

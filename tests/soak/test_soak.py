"""A short form of `make soak`: nothing stays behind a generation."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import pytest

from hybrid_deploy.runtime.session import load_session
from tests.soak.growth import soak
from tests.soak.workload import Workload

RUNS, WARMUP = 300, 100


def test_generations_leave_nothing_behind(tiny_path: Path, page: Path) -> None:
    found = soak(Workload(load_session(tiny_path, threads=1), page), RUNS, WARMUP)
    assert not found.leaks, found


@pytest.mark.parametrize("leak", ["memory", "files"])
def test_what_leaks_is_caught(tiny_path: Path, page: Path, leak: str) -> None:
    """The control: each run keeps 64 KiB, or every 50th an open file."""
    workload = Workload(load_session(tiny_path, threads=1), page)
    kept: list[bytearray] = []
    files: list[IO[bytes]] = []

    def leaking(number: int) -> None:
        workload(number)
        if leak == "memory":
            kept.append(bytearray(b"x" * 65536))
        elif number % 50 == 0:
            files.append(page.open("rb"))

    found = soak(leaking, RUNS, WARMUP)
    for file in files:
        file.close()
    assert found.leaks
    if leak == "memory":
        assert found.resident_bytes > RUNS * 65536 * 0.8
        assert found.descriptors == 0
    else:
        assert found.descriptors == RUNS // 50

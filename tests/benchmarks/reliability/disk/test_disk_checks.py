"""Short forms of the checks that attack what is written to disk, each with its planted fault."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.benchmarks.reliability.disk import builders, disk_full, hostile, kills
from tests.benchmarks.reliability.disk.faults import Ended
from tests.benchmarks.reliability.disk.writers import shares
from tests.benchmarks.reliability.row import Row

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def check_row(row: Row, count: int) -> None:
    assert row.faults == () and row.caught
    assert row.count == count and row.ok


@needs_compiler
def test_a_killed_command_leaves_the_old_or_the_new(tiny_path: Path) -> None:
    row = kills.check(8, 0, bundle=tiny_path, only=("sign", "quantize", "rollback"))
    check_row(row, 8)


@needs_compiler
def test_a_full_disk_leaves_the_old(tiny_path: Path) -> None:
    row = disk_full.check(8, 0, bundle=tiny_path, only=("sign", "quantize", "keygen"))
    check_row(row, 8 + 3 + 4)  # a limit of the size of files for each, and four reports


def test_builders_at_the_same_time_build_every_engine_once(tiny_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    check_row(builders.check(2, 0, bundle=tiny_path), 2)


def test_hostile_bundles_change_nothing_outside(tiny_path: Path) -> None:
    check_row(hostile.check(4, 0, bundle=tiny_path), 4)


@pytest.mark.parametrize(
    ("ended", "fault"),
    [
        (Ended(2, "", "error: the disk is full\n", 0, 0.0), "exit code 2 in place of 1"),
        (Ended(1, "", "error: it failed\n", 0, 0.0), "no reason: error: it failed"),
        (Ended(1, "", "the disk is full\n", 0, 0.0), "not one line: the disk is full"),
        (Ended(1, "", "error: a\nerror: the disk is full\n", 0, 0.0), "not one line"),
    ],
)
def test_an_end_that_says_too_little_is_a_fault(ended: Ended, fault: str) -> None:
    assert [found[: len(fault)] for found in disk_full.message_faults(ended)] == [fault]


def test_shares_add_up_to_the_total() -> None:
    assert shares([2, 4, 3, 4, 2, 6, 2], 300) == [26, 52, 39, 52, 26, 79, 26]
    assert shares([1, 1, 1], 2) == [1, 1, 0]
    assert sum(shares([6, 31, 11], 500)) == 500

"""A short form of the swaps, whose control must be caught."""

from __future__ import annotations

from tests.benchmarks.reliability import swaps


def test_no_swap_changes_the_text() -> None:
    row = swaps.check(count=5, seed=0)
    assert row.ok, row
    assert row.count == 5 and "another text" in row.result

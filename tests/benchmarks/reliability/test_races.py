"""Short forms of the checks with threads and with swapped files, whose controls must be caught."""

from __future__ import annotations

from tests.benchmarks.reliability import swaps, threads


def test_no_swap_changes_the_text() -> None:
    row = swaps.check(count=5, seed=0)
    assert row.ok, row
    assert row.count == 5 and "another text" in row.result


def test_threads_do_not_change_each_others_tokens() -> None:
    row = threads.check(count=2, seed=0)
    assert row.ok, row

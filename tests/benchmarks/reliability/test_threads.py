"""A short form of the threads, whose control must be caught."""

from __future__ import annotations

from tests.benchmarks.reliability import threads


def test_threads_do_not_change_each_others_tokens() -> None:
    row = threads.check(count=2, seed=0)
    assert row.ok, row

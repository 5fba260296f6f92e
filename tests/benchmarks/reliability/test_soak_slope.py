"""The slope of a soak, and a short form whose planted leak must be caught."""

from __future__ import annotations

import pytest

from tests.benchmarks.reliability import soak_slope
from tests.benchmarks.reliability.soak_slope import largest_slope, slope_per_hour


def test_slope_of_a_line_with_a_step() -> None:
    steady = [(float(second), 5_000_000 + 100 * second) for second in range(100)]
    assert slope_per_hour(steady) == pytest.approx(360_000)
    with_step = [(when, resident + 400_000 * (when > 80)) for when, resident in steady]
    assert slope_per_hour(with_step) < 3_600_000, "a line of least squares has 6 MB an hour"


def test_a_long_soak_may_grow_by_a_megabyte_an_hour() -> None:
    assert largest_slope(1800) == 1e6 < largest_slope(600)


def test_a_short_soak_has_no_slope_and_a_leak_has_one() -> None:
    row = soak_slope.check(count=3, seed=0)
    assert row.ok, row

"""Rates, intervals and changes as named numbers of a record; a name ends in its unit."""

from __future__ import annotations

from collections.abc import Mapping

from hybrid_deploy.accuracy.bootstrap import Interval
from hybrid_deploy.accuracy.error_rates import RATES, Change


def rates_record(
    percents: Mapping[str, float], intervals: Mapping[str, Interval], prefix: str = ""
) -> dict[str, object]:
    """Returns each rate with the bounds of its interval; None for what was not measured.

    Args:
        percents: rates in percent, by their names in `RATES`.
        intervals: their intervals, by the same names.
        prefix: text before each name of the record.
    """
    record: dict[str, object] = {}
    for rate in RATES:
        record[f"{prefix}{rate}_percent"] = percents.get(rate)
        record |= bounds_record(f"{prefix}{rate}", "_percent", intervals.get(rate))
    return record


def changes_record(changes: Mapping[str, Change]) -> dict[str, object]:
    """Returns each rate's change in points with the bounds of its interval; None if unknown."""
    record: dict[str, object] = {}
    for rate in RATES:
        change = changes.get(rate)
        record[f"{rate}_change_points"] = None if change is None else change.points
        interval = None if change is None else change.interval
        record |= bounds_record(f"{rate}_change", "_points", interval)
    return record


def bounds_record(name: str, unit: str, interval: Interval | None) -> dict[str, object]:
    """Returns the bounds of an interval as `name_low_unit` and `name_high_unit`."""
    return {
        f"{name}_low{unit}": None if interval is None else interval.low,
        f"{name}_high{unit}": None if interval is None else interval.high,
    }

"""The reliability page: a row for each check, then every fault."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence

from hybrid_deploy.report import Column, render
from tests.benchmarks.reliability.row import Row
from tests.kept_results import Dated, Origin

_COLUMNS = (
    Column("check", "what was done"),
    Column("count", "how often"),
    Column("result", "what came of it"),
    Column("verdict", "verdict"),
    Column("control", "planted fault"),
    Column("caught", "noticed"),
    Column("seconds", "s", digits=0),
)
_SECONDS_PER_MINUTE = 60


def verdict(row: Row) -> str:
    """Returns `ok`, or in few words what is wrong with a row."""
    if row.faults:
        return f"{len(row.faults)} FAULTS"
    if row.count < 1:
        return "NOTHING TRIED"
    return "ok" if row.caught else "BLIND: it did not notice the planted fault"


def is_ok(row: Row) -> bool:
    """Returns whether something was tried, nothing failed and the planted fault was noticed."""
    return row.ok and row.count > 0


def line(name: str, row: Row) -> str:
    """Returns a row as the line that is printed when its check ends."""
    return f"{name}: {row.count} tried, {row.result}; {verdict(row)} ({row.seconds:.0f} s)"


def page(rows: Mapping[str, Dated[Row]], origin: Origin, missing: Sequence[str]) -> str:
    """Returns the page in Markdown.

    Args:
        rows: the rows by the names of their checks, all of one origin.
        origin: the origin of every row.
        missing: names of the checks that were not run.
    """
    days = sorted({dated.day for dated in rows.values()})
    seconds = sum(dated.result.seconds for dated in rows.values())
    command = " ".join(["python -m tests.benchmarks.reliability", *map(shlex.quote, sys.argv[1:])])
    good = sum(is_ok(dated.result) for dated in rows.values())
    return (
        "# Reliability\n\n"
        "Attacks on what the toolkit writes to disk, on what it reads, and on processes that run\n"
        "long. Every check plants a fault of its kind too, and has to notice it: a check that\n"
        "sees nothing proves nothing.\n\n"
        f"{good} of {len(rows)} checks are ok.\n"
        + (f"Not run: {', '.join(missing)}.\n" if missing else "")
        + f"\n{' to '.join(dict.fromkeys((days[0], days[-1])))}, "
        f"{seconds / _SECONDS_PER_MINUTE:.0f} minutes of checks in all, {origin.machine}, "
        f"{origin.packages}.\n"
        f"SHA-256 of the sources that made every row: {origin.sources[:16]}. Last command:\n"
        f"`{command}`\n\n"
        + render([_record(dated.result) for dated in rows.values()], _COLUMNS, "md")
        + _faults(rows)
    )


def _record(row: Row) -> dict[str, object]:
    return {
        "check": row.name,
        "count": f"{row.count:,}",
        "result": row.result,
        "verdict": verdict(row),
        "control": row.control,
        "caught": "yes" if row.caught else "NO",
        "seconds": row.seconds,
    }


def _faults(rows: Mapping[str, Dated[Row]]) -> str:
    """Returns every fault as a block that Markdown shows as it is."""
    return "".join(
        f"\n## Faults of {name}\n\n" + "".join(_indented(fault) for fault in dated.result.faults)
        for name, dated in rows.items()
        if dated.result.faults
    )


def _indented(fault: str) -> str:
    return "".join(f"    {text}\n" for text in fault.splitlines())

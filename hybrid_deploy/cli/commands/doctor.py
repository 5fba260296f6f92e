"""`hybrid-deploy doctor`: what this machine has, and which backends run on it."""

from __future__ import annotations

from textwrap import shorten
from typing import TYPE_CHECKING

import click

from hybrid_deploy.cli.options.common import FORMAT
from hybrid_deploy.cli.output import say
from hybrid_deploy.errors import BackendError
from hybrid_deploy.report import Column, Format, render

if TYPE_CHECKING:
    from hybrid_deploy.runtime.doctor.check import Check

_CHECK = Column("check", "check")
_FINDINGS = (
    Column("verdict", "verdict"),
    Column("run_ms", "ms", digits=3),
    Column("found", "found"),
)
_REMEDY = Column("remedy", "what to do")
_LONGEST_FINDING = 120  # characters of a finding in a table; other formats have all of it


@click.command(epilog="Example: hybrid-deploy doctor --format json")
@FORMAT
def doctor(output_format: Format) -> None:
    """Show what this machine has, and run a tiny inference in every backend.

    Each finding is ok, warn, missing or failed, with what to do about it. Vendor tools that hang
    are cut off. Exit code 0 if at least one backend ran the tiny inference, otherwise 1.
    """
    from rich.console import Console

    from hybrid_deploy.runtime.doctor.report import diagnose

    with Console(stderr=True).status("looking around") as status:
        checks = diagnose(progress=lambda stage, done, total: status.update(stage))
    say(_report(checks, output_format), nl=False)
    if all(check.run_ms is None for check in checks):
        raise BackendError(
            "no backend ran the tiny inference on this machine; do what the report says of "
            "ONNX Runtime CPU, or run: pip install 'hybrid-deploy[cpu]'"
        )


def _report(checks: list[Check], output_format: Format) -> str:
    """Returns the report; in the format `table`, the remedies are a second table."""
    rows: list[dict[str, object]] = [
        {
            "check": check.name,
            "verdict": check.verdict.value,
            "run_ms": check.run_ms,
            "found": check.finding,
            "remedy": check.remedy,
        }
        for check in checks
    ]
    if output_format != "table":
        return render(rows, (_CHECK, *_FINDINGS, _REMEDY), output_format)
    shortened = [
        row | {"found": shorten(str(row["found"]), _LONGEST_FINDING, placeholder=" ...")}
        for row in rows
    ]
    text = render(shortened, (_CHECK, *_FINDINGS), "table")
    remedies = [row for row in rows if row["remedy"] is not None]
    return f"{text}\n{render(remedies, (_CHECK, _REMEDY), 'table')}" if remedies else text

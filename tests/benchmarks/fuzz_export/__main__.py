"""`make fuzz-export`: exports random models, and compares every bundle with its module."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from tests.benchmarks.fuzz_export.check import Verdict
from tests.benchmarks.fuzz_export.page import faults, page, reason_table, verdict_table
from tests.benchmarks.fuzz_export.workers import check_all

LEAST_RIGHT = 0.5
"""Least share of right models: a run that refuses most of them checks little."""


@click.command()
@click.option("--count", default=500, show_default=True, help="How many models.")
@click.option("--seed", default=0, show_default=True, help="Seed of the first model.")
@click.option("--jobs", default=2, show_default=True, help="How many processes.")
@click.option("--limit", default=300.0, show_default=True, help="Seconds for one model.")
@click.option("--out", type=click.Path(path_type=Path), help="Page to write, in Markdown.")
def main(count: int, seed: int, jobs: int, limit: float, out: Path | None) -> None:
    """Export random models; exit code 1 if a bundle or a refusal is wrong, or too few are right."""
    outcomes, began = [], time.perf_counter()
    for outcome in check_all(range(seed, seed + count), jobs, limit):
        outcomes.append(outcome)
        if outcome.verdict is not Verdict.RIGHT:
            click.echo(f"{outcome.seed} {outcome.verdict.value} {outcome.reason[:200]}", err=True)
        if len(outcomes) % 20 == 0:
            click.echo(f"{len(outcomes)} of {count} models", err=True)
    click.echo(verdict_table(outcomes) + "\n\n" + reason_table(outcomes))
    for fault in faults(outcomes):
        click.echo(f"{fault.verdict.value} seed {fault.seed}: {fault.reason}\n  {fault.choices}")
    if out is not None:
        command = (
            f"python -m tests.benchmarks.fuzz_export --count {count} --seed {seed} --jobs {jobs}"
        )
        out.write_text(page(outcomes, command, time.perf_counter() - began), encoding="utf-8")
    right = sum(outcome.verdict is Verdict.RIGHT for outcome in outcomes)
    if few := right < LEAST_RIGHT * len(outcomes):
        click.echo(f"only {right} of {len(outcomes)} models are right: the run says little")
    sys.exit(bool(faults(outcomes)) or few)


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks.fuzz_export")

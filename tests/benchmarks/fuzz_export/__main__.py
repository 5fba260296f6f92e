"""`make fuzz-export`: exports random models, and compares every bundle with its module."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from tests.benchmarks.fuzz_export.check import Outcome, Verdict
from tests.benchmarks.fuzz_export.page import PACKAGES, faults, page, reason_table, verdict_table
from tests.benchmarks.fuzz_export.workers import check_all
from tests.kept_results import PRODUCT, KeptResults, origin_of, today

LEAST_RIGHT = 0.5
"""Least share of right models: a run that refuses most of them checks little."""

_SOURCES = (*PRODUCT, "tests/benchmarks/fuzz_export", "tests/worker_process.py")
_EVERY = 20  # models between two lines on the progress


@click.command()
@click.option("--count", default=500, show_default=True, help="How many models.")
@click.option("--seed", default=0, show_default=True, help="Seed of the first model.")
@click.option("--jobs", default=2, show_default=True, help="How many processes.")
@click.option("--limit", default=300.0, show_default=True, help="Seconds for one model.")
@click.option(
    "--resume",
    "kept",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of results: a model that has one of the same sources, packages and machine is not "
    "checked again.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Page to write, in Markdown.")
def main(
    count: int, seed: int, jobs: int, limit: float, kept: Path | None, out: Path | None
) -> None:
    """Export random models; exit code 1 if a bundle or a refusal is wrong, or too few are right."""
    origin = origin_of(_SOURCES, PACKAGES)
    store = KeptResults(kept, origin, Outcome)
    seeds = range(seed, seed + count)
    checked = {s: earlier for s in seeds if (earlier := store.load(str(s))) is not None}
    for outcome in check_all([s for s in seeds if s not in checked], jobs, limit):
        in_time = outcome.verdict is not Verdict.TIMEOUT  # that a busy machine may cause
        keep = partial(store.keep, str(outcome.seed)) if in_time else today
        checked[outcome.seed] = keep(outcome)
        if outcome.verdict is not Verdict.RIGHT:
            click.echo(f"{outcome.seed} {outcome.verdict.value} {outcome.reason[:200]}", err=True)
        if len(checked) % _EVERY == 0:
            click.echo(f"{len(checked)} of {count} models", err=True)
    outcomes = [dated.result for dated in checked.values()]
    click.echo(verdict_table(outcomes) + "\n\n" + reason_table(outcomes))
    for fault in faults(outcomes):
        click.echo(f"{fault.verdict.value} seed {fault.seed}: {fault.reason}\n  {fault.choices}")
    if out is not None:
        command = (
            f"python -m tests.benchmarks.fuzz_export --count {count} --seed {seed} --jobs {jobs}"
        )
        out.write_text(page(list(checked.values()), command, origin), encoding="utf-8")
    right = sum(outcome.verdict is Verdict.RIGHT for outcome in outcomes)
    if few := right < LEAST_RIGHT * len(outcomes):
        click.echo(f"only {right} of {len(outcomes)} models are right: the run says little")
    sys.exit(bool(faults(outcomes)) or few)


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks.fuzz_export")

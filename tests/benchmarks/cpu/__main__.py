"""`python -m tests.benchmarks.cpu`: generation on a CPU, ours and its rivals side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import click

from hybrid_deploy.cache_dir import cache_folder
from tests.benchmarks.cpu.contest import Contest, Setting, forget_ours, hold
from tests.benchmarks.cpu.entries import Entry, entries_of
from tests.benchmarks.cpu.floor import Rates
from tests.benchmarks.cpu.page import page
from tests.benchmarks.cpu.workloads import CLASSES, MEASURED, WORKLOADS

_THREADS = (1, 2)


@click.command()
@click.option("--workload", "workloads", multiple=True, type=click.Choice(list(WORKLOADS)))
@click.option("--class", "kinds", multiple=True, type=click.Choice(CLASSES), help="Repeatable.")
@click.option("--threads", multiple=True, type=int, help="Repeatable; 1 and 2 if not given.")
@click.option("--contender", "parts", multiple=True, help="Part of a name; repeatable.")
@click.option("--seconds", default=60.0, show_default=True, help="Of rounds, per class.")
@click.option("--rounds", default=5, show_default=True, help="At least so many.")
@click.option("--rivals", type=click.Path(path_type=Path), help="Folder of environments.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder of models and bundles.")
@click.option("--remake", is_flag=True, help="Export and quantize ours again, not the rivals'.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Markdown file.")
def bench(
    workloads: Sequence[str],
    kinds: Sequence[str],
    threads: Sequence[int],
    parts: Sequence[str],
    seconds: float,
    rounds: int,
    rivals: Path | None,
    work: Path | None,
    remake: bool,
    out: Path | None,
) -> None:
    """Let everyone generate in turn, and print what took how long."""
    folder = (work or cache_folder("bench")).resolve()
    if remake:
        for name in workloads or MEASURED:
            forget_ours(folder / name)
    rates: dict[int, Rates] = {}
    contests: list[Contest] = []
    for count, workload, kind in product(
        threads or _THREADS, workloads or MEASURED, kinds or CLASSES
    ):
        entries = _chosen(entries_of(workload, kind), parts)
        if not entries:
            continue
        _say(f"{workload}, {kind}, {count} threads")
        setting = Setting(
            workload, kind, count, seconds, rounds, folder, rivals and rivals.absolute()
        )
        best = rates.setdefault(count, Rates())
        contests.append(hold(setting, entries, best, lambda what: _say(f"  {what}")))
        if out is not None:  # what is there survives what fails later
            out.write_text(page(contests, rates, sys.argv[1:]), encoding="utf-8")
    if out is None:
        click.echo(page(contests, rates, sys.argv[1:]))


def _chosen(entries: Sequence[Entry], parts: Sequence[str]) -> list[Entry]:
    return [e for e in entries if not parts or any(part in e.title for part in parts)]


def _say(what: str) -> None:
    click.echo(what, err=True)


if __name__ == "__main__":
    bench(prog_name="python -m tests.benchmarks.cpu")

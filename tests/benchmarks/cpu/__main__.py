"""`make bench`: generation on a CPU, ours and other runtimes in turn.

Run as `python -m tests.benchmarks.cpu`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import click

from hybrid_deploy.cache_dir import cache_folder
from tests.benchmarks.cpu.contest import Contest, Setting, delete_ours, run_contest
from tests.benchmarks.cpu.entries import Entry, entries_of
from tests.benchmarks.cpu.floor import Rates
from tests.benchmarks.cpu.page import page
from tests.benchmarks.cpu.workloads import CLASSES, MEASURED, WORKLOADS

_THREADS = (1, 2)


@click.command()
@click.option("--workload", "workloads", multiple=True, type=click.Choice(list(WORKLOADS)))
@click.option("--class", "kinds", multiple=True, type=click.Choice(CLASSES), help="Repeatable.")
@click.option("--threads", multiple=True, type=int, help="Repeatable; default: 1 and 2.")
@click.option("--contender", "parts", multiple=True, help="Part of a contender's name; repeatable.")
@click.option(
    "--seconds", default=60.0, show_default=True, help="Rounds start for so long in each class."
)
@click.option("--rounds", default=5, show_default=True, help="Smallest number of rounds.")
@click.option(
    "--rivals", type=click.Path(path_type=Path), help="Folder of the rivals' environments."
)
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
    """Let every contender generate in turn, and print the times."""
    folder = (work or cache_folder("bench")).resolve()
    if remake:
        for name in workloads or MEASURED:
            delete_ours(folder / name)
    rates: dict[int, Rates] = {}
    contests: list[Contest] = []
    for count, workload, kind in product(
        threads or _THREADS, workloads or MEASURED, kinds or CLASSES
    ):
        entries = _chosen(entries_of(workload, kind), parts)
        if not entries:
            continue
        _report(f"{workload}, {kind}, {count} threads")
        setting = Setting(
            workload, kind, count, seconds, rounds, folder, rivals and rivals.absolute()
        )
        best = rates.setdefault(count, Rates())
        contests.append(run_contest(setting, entries, best, lambda text: _report(f"  {text}")))
        if out is not None:  # a later failure keeps the finished classes
            out.write_text(page(contests, rates, sys.argv[1:]), encoding="utf-8")
    if out is None:
        click.echo(page(contests, rates, sys.argv[1:]))


def _chosen(entries: Sequence[Entry], parts: Sequence[str]) -> list[Entry]:
    return [entry for entry in entries if not parts or any(part in entry.title for part in parts)]


def _report(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    bench(prog_name="python -m tests.benchmarks.cpu")

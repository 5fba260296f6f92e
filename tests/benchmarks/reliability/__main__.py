"""`make reliability`: attacks the toolkit in every way that a row of its page names."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import click

from tests.benchmarks.reliability.checks import CHECKS, Check, run_check
from tests.benchmarks.reliability.page import is_ok, line, page
from tests.benchmarks.reliability.row import Row
from tests.kept_results import PRODUCT, Dated, KeptResults, origin_of

_SOURCES = (
    *PRODUCT,
    "tests/benchmarks/reliability",
    "tests/conftest.py",
    "tests/worker_process.py",
)
_PACKAGES = ("numpy", "onnx", "onnxruntime", "torch", "tensorrt-rtx", "cryptography", "filelock")


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    "--share", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
    help="Part of the trials of a whole run.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Seed of every check.")
@click.option("--jobs", default=1, show_default=True, help="Checks at a time.")
@click.option(
    "--resume", "kept", type=click.Path(path_type=Path, file_okay=False),
    help="Folder of results: a check that has one of the same sources, packages, machine, count "
    "and seed is not run again.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Markdown file.")
def main(
    names: tuple[str, ...],
    share: float,
    seed: int,
    jobs: int,
    kept: Path | None,
    out: Path | None,
) -> None:
    """Run the checks NAMES, or all of them.

    Exit code 1 if a check finds a fault, misses the fault that it plants, or tries nothing.
    """
    chosen = _chosen(names)
    origin = origin_of(_SOURCES, _PACKAGES)
    store = KeptResults(kept, origin, Row)
    files = {name: f"{name}-{check.scaled(share)}-{seed}" for name, check in chosen.items()}
    rows = {name: row for name, file in files.items() if (row := store.load(file)) is not None}
    todo = {name: check for name, check in chosen.items() if name not in rows}

    def finished(name: str, row: Row) -> None:
        click.echo(line(name, row))
        rows[name] = store.keep(files[name], row)
        _write(out, page(_ordered(rows, chosen), origin, [n for n in CHECKS if n not in rows]))

    for name in rows:
        click.echo(f"{line(name, rows[name].result)}, from an earlier run")
    _run(todo, share, seed, jobs, finished)
    _write(out, page(_ordered(rows, chosen), origin, [n for n in CHECKS if n not in rows]))
    bad = [name for name, dated in rows.items() if not is_ok(dated.result)]
    for name in bad:
        click.echo("\n".join((f"{name}:", *rows[name].result.faults)), err=True)
    sys.exit(bool(bad))


def _chosen(names: Sequence[str]) -> dict[str, Check]:
    """Returns the checks of some names; without names, all that are there."""
    for name in names:
        if name not in CHECKS or not CHECKS[name].is_there:
            raise click.UsageError(f"there is no check {name!r}; there are {', '.join(CHECKS)}")
    chosen = {
        name: check
        for name, check in CHECKS.items()
        if (name in names if names else check.is_there)
    }
    if not chosen:
        raise click.UsageError("there is no check")
    return chosen


def _run(
    checks: Mapping[str, Check],
    share: float,
    seed: int,
    jobs: int,
    finished: Callable[[str, Row], None],
) -> None:
    """Runs checks; `finished` is called with the name and the row of each when it ends."""
    with ThreadPoolExecutor(jobs) as pool:
        running = {
            pool.submit(_run_alone, name, check, check.scaled(share), seed): name
            for name, check in checks.items()
        }
        for future in as_completed(running):
            finished(running[future], future.result())


def _run_alone(name: str, check: Check, count: int, seed: int) -> Row:
    """Runs a check in a process of its own, so that a crash ends no other check."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(run_check, name, check, count, seed).result()
        except BrokenProcessPool as error:
            return Row(name, 0, "its process was killed", (str(error),), "-", False, 0.0)


def _ordered(rows: Mapping[str, Dated[Row]], chosen: Mapping[str, Check]) -> dict[str, Dated[Row]]:
    return {name: rows[name] for name in chosen if name in rows}


def _write(out: Path | None, text: str) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks.reliability")

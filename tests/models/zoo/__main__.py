"""`python -m tests.models.zoo`: exports, compares, measures and builds the cases of the zoo."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click

from hybrid_deploy.report import Column, render
from tests.models.zoo.case import Case
from tests.models.zoo.cases import FAMILIES, all_cases, find
from tests.models.zoo.check import NEWEST_OPSET, TARGET, Result
from tests.models.zoo.job import check_by_name

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "tensorrt-rtx", "transformers")
_TERMINAL_WIDTH, _PAGE_WIDTH = 36, 240  # largest number of characters of a verdict


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    "--family", "families", multiple=True, type=click.Choice(FAMILIES), help="Repeatable."
)
@click.option("--fast", is_flag=True, help="Only the cases that the test suite exports.")
@click.option("--opset", "opsets", default=str(NEWEST_OPSET), show_default=True, help="As 24,18.")
@click.option("--tensorrt/--no-tensorrt", default=True, help=f"Build the step for {TARGET}.")
@click.option("--jobs", default=1, show_default=True, help="Cases at a time.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Markdown file.")
def zoo(
    names: tuple[str, ...],
    families: tuple[str, ...],
    fast: bool,
    opsets: str,
    tensorrt: bool,
    jobs: int,
    out: Path | None,
) -> None:
    """Check the models NAMES of the zoo, or all of them.

    An error becomes the verdict of its model, and the run continues. The exit code is 1 unless all
    models are ok.
    """
    cases = _chosen(names, families, fast=fast)
    versions = _opsets(opsets)
    results: list[Result] = []
    for result in _checked(cases, versions, tensorrt=tensorrt, jobs=jobs):
        results.append(result)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(page(results, versions, tensorrt=tensorrt), encoding="utf-8")
    click.echo(
        render(_records(results, _TERMINAL_WIDTH), _columns(versions, tensorrt=tensorrt), "table"),
        nl=False,
    )
    click.echo(summary(results), err=True)
    if not all(result.ok for result in results):
        sys.exit(1)


def page(results: Sequence[Result], opsets: Sequence[int], *, tensorrt: bool) -> str:
    """Returns the table as a Markdown page with date, machine, versions and command."""
    versions = ", ".join(f"{name} {v}" for name in _PACKAGES if (v := _version(name)))
    table = render(_records(results, _PAGE_WIDTH), _columns(opsets, tensorrt=tensorrt), "md")
    command = " ".join(["python -m tests.models.zoo", *map(shlex.quote, sys.argv[1:])])
    return (
        "# The zoo\n\n"
        "Models written the ordinary way, without a KV cache, exported and compared with\n"
        "themselves: the module's full re-run over every sequence alone, against ONNX Runtime's\n"
        "steps, greedy, batches of one and three, prompts of unequal length, two input sizes.\n"
        "Step and re-run are medians at 64 tokens on one thread.\n\n"
        f"{summary(results)}\n\n"
        f"{time.strftime('%Y-%m-%d')}, {_cpu()}, Python {platform.python_version()}, {versions}:\n"
        f"`{command}`\n\n{table}"
    )


def summary(results: Sequence[Result]) -> str:
    """Returns a sentence with the number of cases that are ok, and their largest difference."""
    ok_count = sum(result.ok for result in results)
    tokens = sum(result.tokens or 0 for result in results if result.ok)
    worst = max((r.largest_difference or 0.0 for r in results if r.ok), default=0.0)
    return (
        f"{ok_count} of {len(results)} models are ok: {tokens} tokens identical, largest "
        f"difference of a logit {worst:.1e}."
    )


def _checked(
    cases: Sequence[Case], opsets: tuple[int, ...], *, tensorrt: bool, jobs: int
) -> Iterator[Result]:
    """Yields the results of the cases in order; several processes check them."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [
            pool.submit(check_by_name, case.name, f"[{number}/{len(cases)}]", opsets, tensorrt)
            for number, case in enumerate(cases, 1)
        ]
        for future in futures:
            yield future.result()


def _chosen(names: Sequence[str], families: Sequence[str], *, fast: bool) -> list[Case]:
    try:
        cases = [find(name) for name in names] if names else list(all_cases(families or FAMILIES))
    except KeyError as error:
        raise click.UsageError(str(error.args[0])) from None
    return [case for case in cases if case.fast or not fast]


def _opsets(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"--opset takes numbers like 24,18, got {text!r}") from None


def _columns(opsets: Sequence[int], *, tensorrt: bool) -> list[Column]:
    return [
        Column("name", "model"),
        Column("verdict", "verdict"),
        Column("difference", "logits differ by"),
        Column("tokens", "same tokens"),
        Column("step_ms", "step ms", digits=3),
        Column("rerun_ms", "re-run ms", digits=2),
        Column("ratio", "faster", digits=1),
        Column("nodes", "nodes", digits=0),
        Column("export_seconds", "export s", digits=1),
        *(Column(f"opset{o}", f"opset {o}") for o in opsets if o != NEWEST_OPSET),
        *([Column("tensorrt", TARGET)] if tensorrt else []),
    ]


def _records(results: Sequence[Result], max_width: int) -> list[dict[str, object]]:
    return [_record(result, max_width) for result in results]


def _record(result: Result, max_width: int) -> dict[str, object]:
    difference, step, rerun = result.largest_difference, result.step_ms, result.rerun_ms
    return {
        "name": result.name,
        "verdict": _cell(result.verdict, max_width),
        "difference": None if difference is None else f"{difference:.1e}",
        "tokens": None if result.tokens is None else f"{result.identical}/{result.tokens}",
        "step_ms": step,
        "rerun_ms": rerun,
        "ratio": None if step is None or rerun is None else rerun / step,
        "nodes": result.nodes,
        "export_seconds": result.export_seconds,
        "tensorrt": None if result.tensorrt is None else _cell(result.tensorrt, max_width),
        **{f"opset{opset}": _cell(verdict, max_width) for opset, verdict in result.older.items()},
    }


def _cell(text: str, max_width: int) -> str:
    """Returns text that fits a cell of a table: one line, shortened, with `|` escaped."""
    text = " ".join(text.split())
    text = text if len(text) <= max_width else f"{text[: max_width - 3]}..."
    return text.replace("|", "\\|")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.processor()


if __name__ == "__main__":
    zoo(prog_name="python -m tests.models.zoo")

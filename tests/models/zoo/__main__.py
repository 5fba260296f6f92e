"""`python -m tests.models.zoo`: exports, compares, measures and builds the models of the zoo."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import click

from tests.kept_results import Dated, KeptResults
from tests.models.zoo.cases import FAMILIES, all_cases, all_refusals, find
from tests.models.zoo.check import NEWEST_OPSET, REFUSED, TARGET, Result
from tests.models.zoo.runner.job import check_by_name
from tests.models.zoo.runner.origin import zoo_origin
from tests.models.zoo.runner.page import page, summary, terminal


@dataclass(frozen=True)
class Chosen:
    """A model to check, by name; `refused` if it must be refused."""

    name: str
    refused: bool = False


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    "--family",
    "families",
    multiple=True,
    type=click.Choice((*FAMILIES, REFUSED)),
    help="Repeatable.",
)
@click.option("--fast", is_flag=True, help="Only the cases that the test suite exports.")
@click.option("--opset", "opsets", default=str(NEWEST_OPSET), show_default=True, help="As 24,18.")
@click.option("--tensorrt/--no-tensorrt", default=True, help=f"Build the step for {TARGET}.")
@click.option("--jobs", default=1, show_default=True, help="Cases at a time.")
@click.option("--part", default="1/1", show_default=True, help="As 2/4: the second quarter.")
@click.option(
    "--resume",
    "kept",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of results: a model that has one of the same sources, options, packages and "
    "machine is not checked again.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Markdown file.")
def zoo(
    names: tuple[str, ...],
    families: tuple[str, ...],
    fast: bool,
    opsets: str,
    tensorrt: bool,
    jobs: int,
    part: str,
    kept: Path | None,
    out: Path | None,
) -> None:
    """Check the models NAMES of the zoo, or all of them.

    An error becomes the verdict of its model, and the run continues. With --resume, the tables
    hold the results of earlier runs too. The exit code is 1 unless all models are ok, or refused
    as listed.
    """
    chosen = _chosen(names, families, fast=fast)
    made_by = zoo_origin(_opsets(opsets), tensorrt=tensorrt)
    store = KeptResults(kept, made_by, Result)
    results = {
        model.name: earlier for model in chosen if (earlier := store.load(model.name)) is not None
    }
    todo = [model for model in _part(chosen, part) if model.name not in results]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [
            pool.submit(
                check_by_name, model.name, f"[{number}/{len(todo)}]", made_by.opsets, tensorrt,
                refused=model.refused,
            )
            for number, model in enumerate(todo, 1)
        ]  # fmt: skip
        for future in as_completed(futures):
            result = future.result()
            results[result.name] = store.keep(result.name, result)
            _write(out, page(_ordered(results, chosen), made_by, len(chosen)))
    ordered = _ordered(results, chosen)
    if not ordered:
        raise click.UsageError("no model is chosen")
    _write(out, page(ordered, made_by, len(chosen)))
    click.echo(terminal(ordered, made_by), nl=False)
    click.echo(summary([dated.result for dated in ordered]), err=True)
    if not all(dated.result.ok for dated in ordered):
        sys.exit(1)


def _ordered(results: dict[str, Dated[Result]], chosen: Sequence[Chosen]) -> list[Dated[Result]]:
    return [results[model.name] for model in chosen if model.name in results]


def _write(out: Path | None, text: str) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")


def _chosen(names: Sequence[str], families: Sequence[str], *, fast: bool) -> list[Chosen]:
    refusals = [Chosen(refusal.name, refused=True) for refusal in all_refusals()]
    if names:
        by_name = {model.name: model for model in refusals}
        try:
            return [by_name.get(name) or Chosen(find(name).name) for name in names]
        except KeyError as error:
            raise click.UsageError(str(error.args[0])) from None
    cases = all_cases([name for name in families or FAMILIES if name != REFUSED])
    chosen = [Chosen(case.name) for case in cases if case.fast or not fast]
    return chosen + (refusals if not fast and (not families or REFUSED in families) else [])


def _part(chosen: Sequence[Chosen], text: str) -> Sequence[Chosen]:
    """Returns the models of a part `number/count`; slow families spread over all parts."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise click.UsageError(f"--part takes a number and a count like 2/4, got {text!r}")
    return chosen[int(number) - 1 :: int(count)]


def _opsets(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"--opset takes numbers like 24,18, got {text!r}") from None


if __name__ == "__main__":
    zoo(prog_name="python -m tests.models.zoo")

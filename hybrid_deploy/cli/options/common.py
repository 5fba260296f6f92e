"""Options and output that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from hybrid_deploy.contract import FLOAT_VARIANT
from hybrid_deploy.report import FORMATS

BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
FILES = click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
FORCE = click.option("--force", is_flag=True, help="Replace what is already there.")
FORMAT = click.option(
    "--format", "output_format", type=click.Choice(FORMATS), default="table", show_default=True,
    help="How the records are printed.",
)  # fmt: skip
VARIANT = click.option(
    "--variant", default=FLOAT_VARIANT, show_default=True, help="Which variant of the bundle."
)
BACKEND = click.option(
    "--backend", default="onnxruntime", show_default=True,
    help="What computes: onnxruntime, onnxruntime-cuda or tensorrt.",
)  # fmt: skip
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads; default: the backend's own choice."
)


def log(message: str) -> None:
    """Prints a line for people on stderr."""
    click.echo(message, err=True)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on stderr; yields a function that advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)

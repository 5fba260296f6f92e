"""`make generation`: compares exported Hugging Face models of the zoo with `generate()`."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from pathlib import Path

import click
import onnxruntime
import transformers

from hybrid_deploy.report import Column, render
from hybrid_deploy.runtime.backends.registry import (
    BackendOptions,
    load_backend,
)
from tests.benchmarks.generation_equality.equality import (
    BEAM_OPTIONS,
    GREEDY_OPTIONS,
    LENGTH,
    Equality,
    compare,
    is_blip,
)
from tests.models.zoo.check import export
from tests.models.zoo.transformers.models import CASES, MODELS, model_and_adapter

_COLUMNS = (
    Column("name", "model"),
    Column("greedy", "greedy, with and without rules"),
    Column("beams", "4 beams, 2 best"),
    Column("prompt", "4 beams after a prompt"),
    Column("seconds", "s", digits=0),
    Column("difference", "first difference"),
)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Markdown file.")
def main(names: tuple[str, ...], out: Path | None) -> None:
    """Compare the models NAMES, or all of them; exit code 1 if a sequence differs."""
    transformers.logging.set_verbosity_error()
    rows, any_differs = [], False
    for name in names or tuple(MODELS):
        row, equal = _row(name)
        rows.append(row)
        any_differs |= not equal
        click.echo(f"{name}: {'the same' if equal else row['difference']}", err=True)
    table = render(rows, _COLUMNS, "md")
    click.echo(table, nl=False)
    if out is not None:
        out.write_text(_page(table), encoding="utf-8")
    sys.exit(any_differs)


def _row(name: str) -> tuple[dict[str, object], bool]:
    began = time.perf_counter()
    model, exportable = model_and_adapter(name)
    case = dataclasses.replace(CASES[name], max_length=LENGTH)
    with tempfile.TemporaryDirectory(prefix="generation-") as folder:
        bundle = export(case, exportable, Path(folder, "bundle"))
        start = load_backend("onnxruntime", bundle, "fp32", BackendOptions(threads=1)).start
        runs = {
            "greedy": compare(name, model, start, GREEDY_OPTIONS),
            "beams": compare(name, model, start, BEAM_OPTIONS),
        }
        if not is_blip(model):  # its generate() takes no decoder_input_ids
            runs["prompt"] = compare(name, model, start, BEAM_OPTIONS[:3], prompt=3)
    equal = all(run.same == run.sequences > 0 for run in runs.values())
    return {
        "name": name,
        **{kind: _share(run) for kind, run in runs.items()},
        "seconds": time.perf_counter() - began,
        "difference": next((run.difference for run in runs.values() if run.difference), None),
    }, equal


def _page(table: str) -> str:
    """Returns a page with the table, its date, versions and command."""
    versions = f"transformers {transformers.__version__}, onnxruntime {onnxruntime.__version__}"
    return (
        "# Generation beside generate()\n\n"
        "Each cell counts the sequences that equal those of generate(), token by token. The\n"
        "models are tiny Hugging Face models with random weights, exported and run with ONNX\n"
        "Runtime in batches of three whose sequences end at different lengths.\n"
        "The beam columns use three kinds of early stopping, four length penalties, and the rules\n"
        "of the first column; the scores that rank the beams must be equal too.\n\n"
        f"{time.strftime('%Y-%m-%d')}, {versions}: `make generation`\n\n{table}"
    )


def _share(equality: Equality) -> str:
    return f"{equality.same}/{equality.sequences}"


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks.generation_equality")

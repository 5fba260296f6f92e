"""Compares our quantization with that of other libraries, on the same model.

Run as `python -m tests.benchmarks.quantization_rivals`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from tests.benchmarks.quantization_rivals.comparison import OURS, Setting, compare, table, versions
from tests.benchmarks.quantization_rivals.measure import TARGET

_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.argument("bundle", type=_FOLDER)
@click.option("--samples", required=True, type=_FOLDER, help="Typical inputs, to calibrate with.")
@click.option("--eval", "labelled", type=_FOLDER, help="Other inputs with labels.csv.")
@click.option(
    "--python", type=click.Path(path_type=Path), help="Python of an environment with modelopt."
)
@click.option("--ours", multiple=True, default=OURS, help="Our precision; repeatable.")
@click.option(
    "--steps", default=1000, show_default=True, help="Largest number of steps to calibrate with."
)
@click.option(
    "--rounds", default=300, show_default=True, help="Number of timing rounds over all variants."
)
@click.option("--tensorrt/--no-tensorrt", default=True, help=f"Build for {TARGET}.")
@click.option("--json", "out", required=True, type=click.Path(path_type=Path, dir_okay=False))
def rivals(
    bundle: Path,
    samples: Path,
    labelled: Path | None,
    python: Path | None,
    ours: Sequence[str],
    steps: int,
    rounds: int,
    tensorrt: bool,
    out: Path,
) -> None:
    """Quantize BUNDLE with every rival and with ours, and print a Markdown table.

    A failure is reported in its row. Sizes are those of encoder and step; prefill is not compared.
    """
    setting = Setting(
        bundle, samples, labelled, python, ours, steps=steps, rounds=rounds, tensorrt=tensorrt
    )
    rows = compare(setting)
    document = {"versions": versions(python), "rows": rows}
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    click.echo(table(rows), nl=False)


if __name__ == "__main__":
    rivals(prog_name="python -m tests.benchmarks.quantization_rivals")

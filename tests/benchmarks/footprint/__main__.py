"""`make footprint`: measures an install in clean environments of several Python versions."""

from __future__ import annotations

import datetime
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import msgspec

from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.export.exporter import run_export
from hybrid_deploy.export.reference.job import feature_map, write_lines
from tests.benchmarks.footprint import device
from tests.benchmarks.footprint.environments import build_wheel, make_environment, pythons, run
from tests.benchmarks.footprint.page import Facts, failures, page

PRECISIONS = {
    24: ("int8-cpu", "int4-weights"),
    21: ("fp16", "int8", "int8-cpu", "int4-cpu", "int4-weights", "fp8"),
    18: ("fp16",),
}
_CHECKED_BATCHES = 2
_CALIBRATION_LINES = 64


@click.command()
@click.option(
    "--python", "interpreters", multiple=True, type=click.Path(exists=True, path_type=Path),
    help="Repeatable; default: python3.10 to python3.14, those on the path.",
)  # fmt: skip
@click.option(
    "--add", "additions", multiple=True, metavar="NAME=FACTS.JSON",
    help="Output of tests/benchmarks/footprint/device.py on the device NAME; repeatable.",
)  # fmt: skip
@click.option(
    "--keep", type=click.Path(path_type=Path, file_okay=False),
    help="Folder that keeps wheel and bundles, for a device; bundles already there are reused.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Markdown file.")
def main(
    interpreters: Sequence[Path], additions: Sequence[str], keep: Path | None, out: Path | None
) -> None:
    """Install the wheel, weigh it, time its imports, and read digits with it.

    Exit code 1 if an install is too large, an import loads too much, or a token differs.
    """
    measured: dict[str, Facts] = {}
    bases: dict[str, Facts] = {}
    with tempfile.TemporaryDirectory(prefix="footprint-") as scratch:
        folder = Path(scratch) if keep is None else keep
        folder.mkdir(parents=True, exist_ok=True)
        wheel, bundles = build_wheel(folder), [_bundle(folder, opset) for opset in PRECISIONS]
        for number, python in enumerate(interpreters or pythons()):
            environment = Path(scratch, str(number))
            base = _measure(make_environment(python, environment / "base", str(wheel)), [])
            with_runtime = make_environment(python, environment / "cpu", f"{wheel}[cpu]")
            facts = _measure(with_runtime, bundles)
            measured[_environment_name(facts)], bases[_environment_name(facts)] = facts, base
    for addition in additions:
        name, _, path = addition.rpartition("=")
        facts = msgspec.json.decode(Path(path).read_bytes(), type=Facts)
        measured[f"{_environment_name(facts)}, {name}"] = facts
    text = page(_title(), measured, bases)
    if out is not None:
        out.write_text(text, encoding="utf-8")
    click.echo(text)
    sys.exit(bool(failures(measured)))


def _bundle(folder: Path, opset: int) -> Path:
    """Exports the digit reader, checked on a few lines, and adds the precisions of its opset."""
    samples, path = folder / "calibration", folder / f"digits-{opset}.bundle"
    if path.exists():
        return path
    if not samples.exists():
        write_lines(samples, "train", _CALIBRATION_LINES)
    job = feature_map()
    form, checks = replace(job.form, opset=opset), job.checks[:_CHECKED_BATCHES]
    run_export(replace(job, form=form, checks=checks), path)
    for precision in PRECISIONS[opset]:
        quantize_bundle(path, precision, samples)
    return path


def _environment_name(facts: Facts) -> str:
    return f"Python {facts.python}, {facts.machine}"


def _measure(python: Path, bundles: Sequence[Path]) -> Facts:
    printed = run(python, device.__file__, *bundles)
    return msgspec.json.decode(printed, type=Facts)


def _title() -> str:
    return f"""# What an install takes

`make footprint`, {datetime.date.today()}, {os.cpu_count()} CPU cores ({platform.machine()}).

The wheel is installed in clean environments with the newest packages that pip finds. Sizes are
those of the files in site-packages, without pip and setuptools. Bytecode is listed apart: pip
writes it for all modules, or with `--no-compile` Python writes it for the imported ones. A MB is a
million bytes. Import times are medians over fresh processes ({device.PROCESSES} by default) after
a first import, so that the files are in the page cache; the machine may be busy. `hybrid-deploy
verify` decodes the digit reader's golden samples with every variant of three bundles.
"""


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks.footprint")

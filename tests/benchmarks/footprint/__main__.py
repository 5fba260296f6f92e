"""`make footprint`: what an install takes, in clean environments of several Pythons."""

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
    "--python", "given", multiple=True, type=click.Path(exists=True, path_type=Path),
    help="Repeatable; default: python3.10 to python3.14, those on the path.",
)  # fmt: skip
@click.option(
    "--add", "added", multiple=True, metavar="NAME=FACTS.JSON",
    help="What tests/benchmarks/footprint/device.py printed on a device of that name; repeatable.",
)  # fmt: skip
@click.option(
    "--keep", type=click.Path(path_type=Path, file_okay=False),
    help="Leave wheel and bundles in this folder, for a device, and take the bundles that it has.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Markdown file.")
def main(given: Sequence[Path], added: Sequence[str], keep: Path | None, out: Path | None) -> None:
    """Install the wheel, weigh it, time its imports, and read digits with it.

    Exit code 1 if an install is too large, an import loads too much, or a token differs.
    """
    found: dict[str, Facts] = {}
    bases: dict[str, Facts] = {}
    with tempfile.TemporaryDirectory(prefix="footprint-") as scratch:
        folder = Path(scratch) if keep is None else keep
        folder.mkdir(parents=True, exist_ok=True)
        wheel, bundles = build_wheel(folder), [_bundle(folder, opset) for opset in PRECISIONS]
        for number, python in enumerate(given or pythons()):
            home = Path(scratch, str(number))
            base = _measured(make_environment(python, home / "base", str(wheel)), [])
            inside = make_environment(python, home / "cpu", f"{wheel}[cpu]")
            facts = _measured(inside, bundles)
            found[_where(facts)], bases[_where(facts)] = facts, base
    for each in added:
        name, _, path = each.rpartition("=")
        facts = msgspec.json.decode(Path(path).read_bytes(), type=Facts)
        found[f"{_where(facts)}, {name}"] = facts
    text = page(_title(), found, bases)
    if out is not None:
        out.write_text(text, encoding="utf-8")
    click.echo(text)
    sys.exit(bool(failures(found)))


def _bundle(folder: Path, opset: int) -> Path:
    """Exports the digit reader; a few lines tell whether it is right."""
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


def _where(facts: Facts) -> str:
    return f"Python {facts.python}, {facts.machine}"


def _measured(python: Path, bundles: Sequence[Path]) -> Facts:
    printed = run(python, device.__file__, *bundles)
    return msgspec.json.decode(printed, type=Facts)


def _title() -> str:
    return f"""# What an install takes

`make footprint`, {datetime.date.today()}, {os.cpu_count()} CPU cores ({platform.machine()}).

The wheel in clean environments, with the newest packages that pip finds: sizes are those of the
files in site-packages, without pip and setuptools. Bytecode comes on top, unless pip is given
`--no-compile`; then Python writes it for what is used. MB are a million bytes. Import times are
medians of fresh processes ({device.PROCESSES} by default) whose files were read before, whatever
else the machine did. The digit reader's golden samples are read by `hybrid-deploy verify` with
every variant of three bundles.
"""


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks.footprint")

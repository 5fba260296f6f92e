"""`make quantize-report`: accuracy, size and speed of every precision on one page.

Run as `python -m tests.benchmarks.quantization`.
"""

from __future__ import annotations

import datetime
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.calibration.quantize import quantize_automatically
from hybrid_deploy.calibration.variants.auto_select import COLUMNS as AUTOMATIC_COLUMNS
from hybrid_deploy.calibration.variants.request import QuantizationInputs
from hybrid_deploy.report import render
from hybrid_deploy.runtime.engines.cache import EngineCache
from tests.benchmarks.engine_builds.variants import make_variants
from tests.benchmarks.quantization import builds
from tests.benchmarks.quantization.models import NAMES, Subject, make_subject
from tests.benchmarks.quantization_rivals.attempts import ATTEMPTS
from tests.benchmarks.quantization_rivals.comparison import (
    COLUMNS,
    Setting,
    compare,
    table,
    versions,
)

_FEW_ROUNDS = 12
_BUDGET = 0.5
_ACCURACY_COLUMNS = ("cer_percent", "same_tokens_percent")


@click.command()
@click.option("--model", "names", multiple=True, type=click.Choice(NAMES), help="Repeatable.")
@click.option(
    "--python", type=click.Path(path_type=Path), help="Python of an environment with modelopt."
)
@click.option("--rivals/--no-rivals", "with_rivals", default=True, help="Other quantizers' rows.")
@click.option("--builds/--no-builds", "with_builds", default=True, help="TensorRT-RTX, by GPU.")
@click.option(
    "--rounds", default=200, show_default=True, help="Number of timing rounds over all variants."
)
@click.option("--work", type=click.Path(path_type=Path), help="Keep the float bundles here.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Markdown file.")
def quantize_report(
    names: Sequence[str],
    python: Path | None,
    with_rivals: bool,
    with_builds: bool,
    rounds: int,
    work: Path | None,
    out: Path | None,
) -> None:
    """Quantize every model in every precision, compare with float and with other quantizers."""
    with tempfile.TemporaryDirectory(prefix="quantize-report-") as folder:
        models = work or Path(folder)
        models.mkdir(parents=True, exist_ok=True)
        parts = [_preface(python)]
        for name in names or NAMES:
            subject = make_subject(name, models)
            attempts = ATTEMPTS if with_rivals and subject.lines is not None else ()
            setting = Setting(
                subject.bundle, subject.samples, subject.lines, python, attempts=attempts,
                rounds=rounds if subject.lines is not None else _FEW_ROUNDS, tensorrt=with_builds,
            )  # fmt: skip
            parts += _section(name, subject, setting, Path(folder))
            if out is not None:  # a later failure keeps the finished sections
                out.write_text("\n".join(parts), encoding="utf-8")
    if out is None:
        click.echo("\n".join(parts))


def _preface(python: Path | None) -> str:
    command = shlex.join(["python", "-m", "tests.benchmarks.quantization", *sys.argv[1:]])
    packages = ", ".join(f"{name} {version}" for name, version in versions(python).items())
    return f"""# Quantization, measured

`{command}`, {datetime.date.today()}, Python {platform.python_version()}, {packages};
one thread of a shared CPU. The trained models read 600 lines of handwritten digits that training
never saw, and are calibrated on 64 lines of the training scans. All variants are timed in turn;
times are medians. KL is the mean Kullback-Leibler divergence of a variant's logits from those of
fp32 after the same tokens, over 128 lines. MB is the size of encoder and step. The rivals' options
are those of `tests/benchmarks/quantization_rivals`; onnxruntime and modelopt calibrate with the
inputs that our own decoding loop feeds the graphs. Nothing was run on a GPU.
"""


def _section(name: str, subject: Subject, setting: Setting, folder: Path) -> Iterator[str]:
    yield f"## {name}: {subject.title}\n"
    trained = subject.lines is not None
    columns = [column for column in COLUMNS if trained or column.key not in _ACCURACY_COLUMNS]
    yield table(compare(setting), columns)
    if trained:
        yield from _automatic(subject, folder / f"{name}-auto.bundle")
    if setting.tensorrt:
        yield from _builds(subject, folder / f"{name}-builds.bundle")


def _automatic(subject: Subject, bundle: Path) -> Iterator[str]:
    shutil.copytree(subject.bundle, bundle)
    data = QuantizationInputs(subject.samples, evaluation=subject.lines)
    report = quantize_automatically(bundle, data, max_drop=_BUDGET, threads=1)
    chosen = "nothing" if report.chosen is None else report.chosen.variant
    yield f"`quantize --auto --max-drop {_BUDGET}` on this CPU, one thread, adds {chosen}:\n"
    yield render([candidate.record() for candidate in report.candidates], AUTOMATIC_COLUMNS, "md")


def _builds(subject: Subject, bundle: Path) -> Iterator[str]:
    shutil.copytree(subject.bundle, bundle)
    names = make_variants(bundle, subject.samples)
    yield "Graphs that TensorRT-RTX compiles, by GPU:\n"
    cache = EngineCache(bundle.parent / f"{bundle.name}-engines")
    yield render(builds.build_rows(open_bundle(bundle), names, cache), builds.COLUMNS, "md")


if __name__ == "__main__":
    quantize_report(prog_name="python -m tests.benchmarks.quantization")

"""`make engines`: builds every variant of the digit reader for every kind of GPU."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.cli.progress import progress_bar
from hybrid_deploy.export.exporter import run_export
from hybrid_deploy.export.reference.job import feature_map, write_lines
from hybrid_deploy.report import render
from hybrid_deploy.runtime.engines.cache import EngineCache
from hybrid_deploy.runtime.tensorrt_builder.optimization_profile import narrow_dims
from tests.benchmarks.engine_builds.variants import FLOAT, PRECISIONS, make_variants
from tests.benchmarks.engine_builds.verdicts import (
    BUILDS,
    COLUMNS,
    TARGETS,
    Row,
    is_unexpected,
    verdict_rows,
)

OPSETS = ("24", "21", "18")
_CALIBRATION_LINES = 64
_PACKAGES = ("hybrid-deploy", "torch", "onnx", "tensorrt-rtx")


@click.command()
@click.option("--target", "targets", multiple=True, type=click.Choice(TARGETS), help="Repeatable.")
@click.option(
    "--precision", "precisions", multiple=True, type=click.Choice(PRECISIONS),
    help="Besides fp32; repeatable.",
)  # fmt: skip
@click.option("--opset", "opsets", multiple=True, type=click.Choice(OPSETS), help="Repeatable.")
@click.option(
    "--profile", "ranges", multiple=True, metavar="NAME=MIN[:TYPICAL:MAX]",
    help="As `hybrid-deploy build` takes it.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Markdown file.")
def engines(
    targets: Sequence[str],
    precisions: Sequence[str],
    opsets: Sequence[str],
    ranges: Sequence[str],
    out: Path | None,
) -> None:
    """Build encoder, prefill and step of every variant; nothing is run.

    Exit code 1 if TensorRT-RTX refuses a build that `device_support` expects, or builds one that
    it does not expect.
    """
    with tempfile.TemporaryDirectory(prefix="engines-") as folder:
        rows: list[Row] = []
        for opset in opsets or OPSETS:
            bundle = _bundle(Path(folder), int(opset), precisions or PRECISIONS)
            narrowed, cache = narrow_dims(bundle, ranges), EngineCache(Path(folder, "engines"))
            for row in _rows_with_progress(narrowed, targets or TARGETS, cache):
                rows.append(row)
                if out is not None:  # a later failure keeps the finished rows
                    out.write_text(_page(rows), encoding="utf-8")
    click.echo(render(rows, COLUMNS, "table"), nl=False)
    click.echo(_summary(rows))
    sys.exit(any(map(is_unexpected, rows)))


def _bundle(folder: Path, opset: int, precisions: Sequence[str]) -> Bundle:
    """Exports the digit reader and adds the precisions that its opset knows."""
    samples, path = folder / "calibration", folder / f"digits-{opset}.bundle"
    if not samples.exists():
        write_lines(samples, "train", _CALIBRATION_LINES)
    job = feature_map()
    run_export(replace(job, form=replace(job.form, opset=opset)), path)
    make_variants(path, samples, precisions)
    return open_bundle(path)


def _rows_with_progress(
    bundle: Bundle, targets: Sequence[str], cache: EngineCache
) -> Iterator[Row]:
    variants = list(bundle.manifest.variants)
    title = f"opset {bundle.variant(FLOAT).opset}"
    count = len(variants) * len(targets)
    with progress_bar(title, count) as show:
        for done, row in enumerate(verdict_rows(bundle, variants, targets, cache), start=1):
            yield row
            show(title, done, count)


def _summary(rows: Sequence[Row]) -> str:
    built = sum(row["verdict"] == BUILDS for row in rows)
    unexpected = sum(map(is_unexpected, rows))
    refused = len(rows) - built - unexpected
    return f"{built} of {len(rows)} build, {refused} are refused as expected, {unexpected} are not"


def _page(rows: Sequence[Row]) -> str:
    command = shlex.join(["python", "-m", "tests.benchmarks.engine_builds", *sys.argv[1:]])
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    return f"""# Engines of the digit reader

`{command}`, {datetime.date.today()}, Python {platform.python_version()}, {packages};
{os.cpu_count()} CPU cores ({platform.machine()}), no GPU: the engines were built, none was run.

A row stands for encoder, prefill and step together; seconds (wall time on a machine that may be
busy) and MB are sums over the engines that were built.
Caches are written in place (native, opset 24) or to a second buffer (scatter, for TensorRT before
10.15). {_summary(rows)}.

{render(rows, COLUMNS, "md")}"""


if __name__ == "__main__":
    engines(prog_name="python -m tests.benchmarks.engine_builds")

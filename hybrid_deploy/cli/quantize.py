"""`hybrid-deploy quantize`: a bundle and samples -> a smaller, faster variant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybrid_deploy.calibration.precision import RECIPES
from hybrid_deploy.calibration.range_methods import METHODS
from hybrid_deploy.cli.options import BUNDLE, FORCE

if TYPE_CHECKING:
    from hybrid_deploy.calibration.quantize import QuantizeReport

_BYTES_PER_MB = 1e6


@click.command(
    epilog="Example: hybrid-deploy quantize digits.bundle --precision int8 --samples lines/"
)
@BUNDLE
@click.option(
    "--precision", required=True,
    help=f"One of: {', '.join(f'{r.name} ({r.summary})' for r in RECIPES.values())}.",
)  # fmt: skip
@click.option(
    "--samples", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Folder with typical inputs; int8 needs it, fp16 is compared on it.",
)  # fmt: skip
@click.option(
    "--method", default="minmax", show_default=True,
    help=f"How the range of an activation is chosen: {', '.join(METHODS)}.",
)  # fmt: skip
@click.option("--name", help="Name of the new variant; default: the precision.")
@FORCE
@click.option(
    "--format", "output_format", type=click.Choice(["line", "json"]),
    default="line", show_default=True, help="How the result is printed.",
)  # fmt: skip
def quantize(
    bundle: Path,
    precision: str,
    samples: Path | None,
    method: str,
    name: str | None,
    force: bool,
    output_format: str,
) -> None:
    """Add a quantized variant to BUNDLE.

    The variant is decoded beside the float one before it is added; the bundle stays as it was when
    anything fails. What calibration saw is kept in `calibration` of $HYBRID_DEPLOY_CACHE (default
    ~/.cache/hybrid_deploy): a run that was interrupted goes on, another method needs no new run.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    from hybrid_deploy.calibration.quantize import quantize_bundle

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    log = Console(stderr=True)
    with Progress(*columns, console=log, transient=True, disable=not log.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        report = quantize_bundle(
            bundle, precision, samples, name=name, method=method, force=force, progress=show
        )
    click.echo(_json(report) if output_format == "json" else _line(report))


def agreement_of(report: QuantizeReport) -> str:
    """Says how much a variant gives the float variant's tokens."""
    seen = report.agreement
    return (
        f"{seen.same_sequences} of {seen.sequences} sequences and "
        f"{seen.same_tokens} of {seen.tokens} tokens as in float"
        + (", emulated on this CPU" if report.emulated else "")
    )


def _line(report: QuantizeReport) -> str:
    return (
        f"{report.variant}: {report.size_bytes / _BYTES_PER_MB:.2f} MB "
        f"(float {report.float_size_bytes / _BYTES_PER_MB:.2f} MB), {agreement_of(report)}"
    )


def _json(report: QuantizeReport) -> str:
    import json

    seen = report.agreement
    return json.dumps(
        {
            "bundle": str(report.bundle.folder),
            "variant": report.variant,
            "precision": report.precision,
            "size_bytes": report.size_bytes,
            "float_size_bytes": report.float_size_bytes,
            "calibration_samples": report.samples,
            "sequences": seen.sequences,
            "same_sequences": seen.same_sequences,
            "tokens": seen.tokens,
            "same_tokens": seen.same_tokens,
            "emulated": report.emulated,
        }
    )

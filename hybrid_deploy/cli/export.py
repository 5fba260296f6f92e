"""`hybrid-deploy export`: model -> bundle."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybrid_deploy.cli.options import FORCE, log, progress_bar
from hybrid_deploy.errors import UsageError

if TYPE_CHECKING:
    from hybrid_deploy.export.exporter import ExportJob


@click.command(
    epilog="Example: hybrid-deploy export hybrid_deploy.export.reference.job:feature_map "
    "-o digits.bundle"
)
@click.argument("model", metavar="PACKAGE.MODULE:FACTORY")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The bundle.")
@FORCE
def export(model: str, out: Path, force: bool) -> None:
    """Export a trained model into a bundle that decodes one token at a time.

    FACTORY takes no arguments and returns a hybrid_deploy.export.exporter.ExportJob. Nothing is
    written unless the exported graphs give the model's own tokens on every input of the job.
    """
    check_output(out, force)
    job = load_job(model)
    inputs = sum(len(next(iter(batch.values()))) for batch in job.checks)
    from hybrid_deploy.export.exporter import export_model

    with progress_bar("check", inputs) as advance:
        report = export_model(job, out, force=force, progress=log, checked=advance)
    parity = report.parity
    seconds = ", ".join(f"{stage} {time:.1f} s" for stage, time in report.stage_seconds.items())
    log(seconds)
    click.echo(
        f"{report.path}: {parity.sequences} inputs, {parity.steps} tokens identical to the model, "
        f"largest difference of a logit {parity.largest_difference:.1e}"
    )


def check_output(out: Path, force: bool) -> None:
    """Refuses early what would fail after minutes of work."""
    from hybrid_deploy.errors import OutputExistsError

    if out.exists() and not force:
        raise OutputExistsError(out)


def load_job(name: str) -> ExportJob:
    """Imports `package.module:factory` and calls it.

    Raises:
        UsageError: there is no such module or factory, or it gives something else.
    """
    module_name, colon, factory_name = name.partition(":")
    if not (module_name and colon and factory_name):
        raise UsageError(f"expected package.module:factory, got {name!r}")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
        from hybrid_deploy.export.exporter import ExportJob
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise
        raise UsageError(f"there is no module {module_name!r}: {error}") from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise UsageError(f"{module_name} has no function {factory_name!r}")
    job = factory()
    if not isinstance(job, ExportJob):
        raise UsageError(f"{name} gave {type(job).__name__}, an ExportJob was expected")
    return job

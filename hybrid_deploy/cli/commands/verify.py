"""`hybrid-deploy verify`: a bundle -> whether its files and its golden samples are right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybrid_deploy.cli.options.common import BACKEND, BUNDLE, FORMAT, log
from hybrid_deploy.contract import FLOAT_VARIANT
from hybrid_deploy.errors import BundleError, HybridDeployError
from hybrid_deploy.report import Column, Format, render

if TYPE_CHECKING:
    from hybrid_deploy.bundle.bundle import Bundle

COLUMNS = (
    Column("variant", "variant"),
    Column("samples", "golden samples", digits=0),
    Column("equal", "equal", digits=0),
    Column("verdict", "verdict"),
)


@click.command(epilog="Example: hybrid-deploy verify digits.bundle")
@BUNDLE
@BACKEND
@FORMAT
def verify(bundle: Path, backend: str, output_format: Format) -> None:
    """Check every file of BUNDLE, then decode its golden samples with every variant.

    A golden sample holds the tokens of the original model. The float variant must decode the same
    tokens; if a quantized variant differs, or cannot run on this machine, its row says so.
    """
    from hybrid_deploy.bundle.bundle import open_bundle

    opened = open_bundle(bundle)
    log(f"{len(opened.manifest.files)} files are as they were written")
    rows = [_variant_row(opened, variant, backend) for variant in opened.manifest.variants]
    click.echo(render(rows, COLUMNS, output_format), nl=False)
    if any(row["variant"] == FLOAT_VARIANT and row["verdict"] != "ok" for row in rows):
        raise BundleError(f"{bundle} does not give the original model's tokens on this machine")


def _variant_row(bundle: Bundle, variant: str, backend: str) -> dict[str, object]:
    """Returns the row of a variant; only the float variant must load on this machine."""
    from hybrid_deploy.runtime.backends.registry import BackendOptions, load_backend
    from hybrid_deploy.runtime.session.session import Session

    golden = bundle.manifest.golden
    row: dict[str, object] = {"variant": variant, "samples": len(golden)}
    try:
        loaded = load_backend(backend, bundle, variant, BackendOptions())
    except HybridDeployError as error:
        if variant == FLOAT_VARIANT:
            raise
        return row | {"verdict": f"not run: {error}"}
    session = Session(bundle, variant, loaded)
    equal = sum(
        session.run_files([bundle.folder / sample.file])[0][0].tokens == sample.tokens
        for sample in golden
    )
    verdict = "ok" if equal == len(golden) else "differs from the original model"
    return row | {"equal": equal, "verdict": verdict}

"""`hybrid-deploy verify`: hashes and golden samples."""

from __future__ import annotations

from pathlib import Path

import click

from hybrid_deploy.cli.options.common import BACKEND, BUNDLE, FORMAT, log
from hybrid_deploy.errors import BundleError, HybridDeployError
from hybrid_deploy.report import Column, Format, render

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

    The golden samples hold what the original model makes of them. The float variant must give the
    very same tokens; where a quantized one differs, or cannot run here, the row says so.
    """
    from hybrid_deploy.bundle.bundle import open_bundle
    from hybrid_deploy.contract import FLOAT_VARIANT
    from hybrid_deploy.runtime.backends.registry import (
        BackendOptions,
        load_backend,
    )
    from hybrid_deploy.runtime.session.session import Session

    opened = open_bundle(bundle)
    log(f"{len(opened.manifest.files)} files are as they were written")
    golden, rows = opened.manifest.golden, []
    for variant in opened.manifest.variants:
        try:
            loaded = load_backend(backend, opened, variant, BackendOptions())
        except HybridDeployError as error:
            if variant == FLOAT_VARIANT:
                raise
            rows.append(
                {"variant": variant, "samples": len(golden), "verdict": f"not run: {error}"}
            )
            continue
        session = Session(opened, variant, loaded)
        equal = sum(
            session.run_files([opened.folder / sample.file])[0][0].tokens == sample.tokens
            for sample in golden
        )
        verdict = "ok" if equal == len(golden) else "differs from the original model"
        rows.append(
            {"variant": variant, "samples": len(golden), "equal": equal, "verdict": verdict}
        )
    click.echo(render(rows, COLUMNS, output_format), nl=False)
    if any(row["variant"] == FLOAT_VARIANT and row["verdict"] != "ok" for row in rows):
        raise BundleError(f"{bundle} does not give the original model's tokens on this machine")

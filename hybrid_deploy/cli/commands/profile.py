"""`hybrid-deploy profile`: inputs -> the latency of each stage of decoding them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybrid_deploy.cli.options.common import BACKEND, BUNDLE, FILES, FORMAT, THREADS, VARIANT
from hybrid_deploy.cli.output import log, say
from hybrid_deploy.cli.progress import progress_bar
from hybrid_deploy.report import Column, Format, json_text, render

if TYPE_CHECKING:
    from hybrid_deploy.runtime.session.profile import Profile

COLUMNS = (
    Column("stage", "stage"),
    Column("count", "count", digits=0),
    Column("p50_ms", "p50 ms", digits=3),
    Column("p90_ms", "p90 ms", digits=3),
)


@click.command(epilog="Example: hybrid-deploy profile digits.bundle lines/*.png --runs 200")
@BUNDLE
@FILES
@VARIANT
@BACKEND
@THREADS
@click.option("--runs", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--warmup", type=click.IntRange(min=0), default=10, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@FORMAT
def profile(
    bundle: Path,
    files: tuple[Path, ...],
    variant: str,
    backend: str,
    threads: int | None,
    runs: int,
    warmup: int,
    batch: int,
    output_format: Format,
) -> None:
    """Time every stage of reading FILES with BUNDLE."""
    from hybrid_deploy.runtime.session.profile import profile_session
    from hybrid_deploy.runtime.session.session import load_session

    session = load_session(bundle, variant=variant, backend=backend, threads=threads)
    with progress_bar(f"{variant} on {session.backend.version}", warmup + runs) as bar:
        measured = profile_session(
            session, files, runs=runs, warmup=warmup, batch=batch, progress=bar
        )
    if output_format == "json":
        say(json_text(measured))
    else:
        say(render(records(measured), COLUMNS, output_format), nl=False)
    log(f"{measured.tokens_per_s:.0f} tokens/s, peak memory {measured.peak_rss_mb:.0f} MB")


def records(measured: Profile) -> list[dict[str, object]]:
    """Returns the records of a profile, one for each stage."""
    return [
        {"stage": s.stage, "count": s.count, "p50_ms": s.p50_ms, "p90_ms": s.p90_ms}
        for s in measured.stages
    ]

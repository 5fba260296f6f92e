"""`make soak`: runs thousands of generations in one process and measures its growth."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import click

from hybrid_deploy.export.exporter import run_export
from hybrid_deploy.runtime.session.session import load_session
from tests.benchmarks.soak.growth import soak
from tests.benchmarks.soak.workload import Workload
from tests.conftest import make_tiny, tiny_job


@click.command()
@click.option("--runs", default=10_000, show_default=True, help="How many generations.")
def main(runs: int) -> None:
    """Generate again and again; exit code 1 if RAM or open files grow."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        job, path = tiny_job(make_tiny()), Path(folder, "tiny.bundle")
        run_export(job, path)
        page = Path(folder, "page.png")
        page.write_bytes(job.golden["page.png"])
        began = time.perf_counter()
        growth = soak(Workload(load_session(path, threads=1), page), runs, warmup=300)
    click.echo(
        f"{growth.runs} generations in {time.perf_counter() - began:.0f} s: "
        f"{growth.descriptors:+d} open files, {growth.resident_bytes / 1e6:+.2f} MB"
    )
    sys.exit(growth.leaks)


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks.soak")

"""`hybrid-deploy compare`: variants x backends -> speed and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.cli.options.common import (
    BUNDLE,
    FORMAT,
    THREADS,
    log,
)
from hybrid_deploy.cli.progress import progress_bar
from hybrid_deploy.error_rates import measure_accuracy
from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.labels import (
    LabelledFile,
    load_labels,
)
from hybrid_deploy.progress import Progress, part_of, silent
from hybrid_deploy.report import Column, Format, render

COLUMNS = (
    Column("variant", "variant"),
    Column("backend", "backend"),
    Column("size_mb", "MB", digits=2),
    Column("cer_percent", "CER %", digits=2),
    Column("exact_percent", "exact %", digits=2),
    Column("encoder_ms", "encoder ms", digits=2),
    Column("token_ms", "ms/token", digits=3),
    Column("total_ms", "total ms", digits=2),
    Column("status", "status"),
)
WORD_ERRORS = Column("wer_percent", "WER %", digits=2)
"""Column that is shown if a label has several words."""
_BYTES_PER_MB = 1e6
_WARMUP = 5


@click.command(epilog="Example: hybrid-deploy compare digits.bundle --samples lines")
@BUNDLE
@click.option(
    "--samples", required=True, type=click.Path(path_type=Path),
    help="Folder of inputs with a labels.csv (columns file, text).",
)  # fmt: skip
@click.option("--variant", "variants", multiple=True, help="Variant, may be repeated; default all.")
@click.option(
    "--backend", "backends", multiple=True, help="Backend, may be repeated; default all usable."
)
@THREADS
@FORMAT
def compare(
    bundle: Path,
    samples: Path,
    variants: tuple[str, ...],
    backends: tuple[str, ...],
    threads: int | None,
    output_format: Format,
) -> None:
    """Read every sample with every variant of BUNDLE on every backend.

    Times are medians of single inputs, accuracy is over all samples. A variant that cannot run
    says so in its row and does not stop the others.
    """
    from hybrid_deploy.runtime.backends.probing import usable_backends

    opened, labels = open_bundle(bundle), load_labels(samples)
    chosen = list(variants) or list(opened.manifest.variants)
    for variant in chosen:
        opened.variant(variant)
    usable = usable_backends()
    pairs = [(variant, backend) for variant in chosen for backend in backends or usable]
    with progress_bar("compare", len(pairs) * len(labels)) as bar:
        rows = compare_rows(opened, labels, pairs, threads, bar)
    click.echo(render(rows, columns_for(labels), output_format), nl=False)
    log(f"{len(labels)} inputs one by one, medians; {threads or 'default'} CPU threads")


def columns_for(labels: Sequence[LabelledFile]) -> tuple[Column, ...]:
    """Returns the columns of the report; with word errors if a label has several words."""
    if not any(len(label.text.split()) > 1 for label in labels):
        return COLUMNS
    index = next(i for i, column in enumerate(COLUMNS) if column.key == "exact_percent")
    return (*COLUMNS[:index], WORD_ERRORS, *COLUMNS[index:])


def compare_rows(
    bundle: Bundle,
    labels: Sequence[LabelledFile],
    pairs: Sequence[tuple[str, str]],
    threads: int | None,
    progress: Progress = silent,
) -> list[dict[str, object]]:
    """Returns a record for each pair (variant, backend); a pair that fails is a record too.

    Args:
        bundle: bundle that is measured.
        labels: inputs with their expected texts.
        pairs: names of variant and backend.
        threads: number of CPU threads; None leaves the choice to the backend.
        progress: called after each input, with the counts of finished inputs and of all inputs of
            all pairs.
    """
    rows: list[dict[str, object]] = []
    total = len(pairs) * len(labels)
    for number, (variant, backend) in enumerate(pairs):
        part = part_of(progress, "compare", number * len(labels), total)
        row: dict[str, object] = {"variant": variant, "backend": backend}
        row["size_mb"] = bundle.variant_size_bytes(variant) / _BYTES_PER_MB
        try:
            row |= _measure(bundle, variant, backend, labels, threads, part)
        except HybridDeployError as error:
            row["status"] = f"failed: {' '.join(str(error).split())}"
            log(f"{variant} on {backend} failed: {error}")
        rows.append(row)
    return rows


def _measure(
    bundle: Bundle,
    variant: str,
    backend: str,
    labels: Sequence[LabelledFile],
    threads: int | None,
    progress: Progress,
) -> dict[str, object]:
    from hybrid_deploy.runtime.backends.registry import (
        BackendOptions,
        load_backend,
    )
    from hybrid_deploy.runtime.session.profile import summarize
    from hybrid_deploy.runtime.session.session import Session

    session = Session(
        bundle, variant, load_backend(backend, bundle, variant, BackendOptions(threads))
    )
    for label in labels[:_WARMUP]:
        session.run_files([label.file])
    texts, timings, tokens = [], [], 0
    progress("read", 0, len(labels))
    for done, label in enumerate(labels, start=1):
        (result,), timing = session.run_files([label.file])
        texts.append(result.text or "")
        timings.append(timing)
        tokens += len(result.tokens)
        progress("read", done, len(labels))
    accuracy = measure_accuracy([label.text for label in labels], texts)
    profile = summarize(timings, tokens, sum(t.total_ms for t in timings) / 1e3)
    return {
        "cer_percent": accuracy.cer_percent,
        "wer_percent": accuracy.wer_percent,
        "exact_percent": accuracy.exact_percent,
        "encoder_ms": profile.stage("encoder").p50_ms,
        "token_ms": profile.stage("next token").p50_ms,
        "total_ms": profile.stage("total").p50_ms,
        "status": "ok",
    }

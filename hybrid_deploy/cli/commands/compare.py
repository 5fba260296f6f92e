"""`hybrid-deploy compare`: variants x backends -> speed and accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.cli.options.common import BUNDLE, FORMAT, THREADS
from hybrid_deploy.cli.options.paths import PATH
from hybrid_deploy.cli.output import log, say
from hybrid_deploy.cli.progress import progress_bar
from hybrid_deploy.error_rates import exact_percent, measure_accuracy
from hybrid_deploy.errors import (
    BackendError,
    HybridDeployError,
    InputError,
    MissingDependencyError,
)
from hybrid_deploy.labels import (
    LabelledFile,
    load_labels,
)
from hybrid_deploy.progress import Progress, part_of, silent
from hybrid_deploy.report import Column, Format, render

if TYPE_CHECKING:
    from hybrid_deploy.runtime.generation.options import GenerateOptions

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
_FAILED = "failed"


@click.command(epilog="Example: hybrid-deploy compare digits.bundle --samples lines")
@BUNDLE
@click.option(
    "--samples", required=True, type=PATH,
    help="Folder of inputs with a labels.csv (columns file, text).",
)  # fmt: skip
@click.option("--variant", "variants", multiple=True, help="Variant, may be repeated; default all.")
@click.option(
    "--backend", "backends", multiple=True, help="Backend, may be repeated; default all usable."
)
@click.option("--language", metavar="CODE", help="Language of the samples: de. (Whisper)")
@click.option("--task", help="transcribe, or translate into English. (Whisper)")
@THREADS
@FORMAT
def compare(
    bundle: Path,
    samples: Path,
    variants: tuple[str, ...],
    backends: tuple[str, ...],
    language: str | None,
    task: str | None,
    threads: int | None,
    output_format: Format,
) -> None:
    """Read every sample with every variant of BUNDLE on every backend.

    Times are medians of single inputs, accuracy is over all samples. A variant that cannot run
    says so in its row and does not stop the others; if none can run, the command fails. A number
    that was not measured is a dash.
    """
    from hybrid_deploy.runtime.backends.probing import usable_backends
    from hybrid_deploy.runtime.generation.options import GenerateOptions

    opened, labels = open_bundle(bundle), load_labels(samples)
    chosen = list(variants) or list(opened.manifest.variants)
    for variant in chosen:
        opened.variant(variant)
    usable = usable_backends()
    pairs = [(variant, backend) for variant in chosen for backend in backends or usable]
    with progress_bar("compare", len(pairs) * len(labels)) as bar:
        options = GenerateOptions(language=language, task=task)
        rows = compare_rows(opened, labels, pairs, threads, bar, options)
    say(render(rows, columns_for(labels), output_format), nl=False)
    check_rows(rows, bundle)
    log(f"{len(labels)} inputs one by one, medians; {threads or 'default'} CPU threads")


def check_rows(rows: Sequence[Mapping[str, object]], bundle: Path) -> None:
    """Checks that at least one row of the report was measured.

    Raises:
        BackendError: there is no row, or every row failed.
    """
    if not rows:
        raise BackendError(
            f"no backend can run {bundle} on this machine, so nothing was compared; "
            "hybrid-deploy doctor says what is missing"
        )
    if all(str(row["status"]).startswith(_FAILED) for row in rows):
        raise BackendError(
            f"none of the {len(rows)} rows of {bundle} could be measured; "
            f"the first {rows[0]['status']}"
        )


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
    options: GenerateOptions | None = None,
) -> list[dict[str, object]]:
    """Returns a record for each pair (variant, backend); a pair that fails is a record too.

    Args:
        bundle: bundle that is measured.
        labels: inputs with their expected texts.
        pairs: names of variant and backend.
        threads: number of CPU threads; None leaves the choice to the backend.
        progress: called after each input, with the counts of finished inputs and of all inputs of
            all pairs.
        options: options of the generation; None takes the bundle's defaults.
    """
    rows: list[dict[str, object]] = []
    total = len(pairs) * len(labels)
    for number, (variant, backend) in enumerate(pairs):
        part = part_of(progress, "compare", number * len(labels), total)
        row: dict[str, object] = {"variant": variant, "backend": backend}
        row["size_mb"] = bundle.variant_size_bytes(variant) / _BYTES_PER_MB
        try:
            row |= _measure(bundle, variant, backend, labels, threads, part, options)
        except HybridDeployError as error:
            row["status"] = f"{_FAILED}: {' '.join(str(error).split())}"
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
    options: GenerateOptions | None,
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
        session.run_files([label.file], options=options)
    texts, timings, tokens = [], [], 0
    progress("read", 0, len(labels))
    for done, label in enumerate(labels, start=1):
        (result,), timing = session.run_files([label.file], options=options)
        texts.append(result.text or "")
        timings.append(timing)
        tokens += len(result.tokens)
        progress("read", done, len(labels))
    accuracy = _accuracy(bundle, [label.text for label in labels], texts)
    profile = summarize(timings, tokens, sum(t.total_ms for t in timings) / 1e3)
    next_token = profile.stage("next token")
    return accuracy | {
        "encoder_ms": profile.stage("encoder").p50_ms,
        "token_ms": next_token.p50_ms if next_token.count else None,
        "total_ms": profile.stage("total").p50_ms,
    }


def _accuracy(bundle: Bundle, expected: Sequence[str], texts: Sequence[str]) -> dict[str, object]:
    """Returns the accuracy and the status of a row; what cannot be measured is left out.

    The status is `ok`, or says which numbers are missing and why.
    """
    if bundle.manifest.vocabulary is None:
        return {"status": "no accuracy: the bundle has no vocabulary, so its tokens are no text"}
    measured: dict[str, object] = {"exact_percent": exact_percent(expected, texts)}
    try:
        accuracy = measure_accuracy(expected, texts)
    except (MissingDependencyError, InputError) as error:
        return measured | {"status": f"no error rates: {error}"}
    return measured | {
        "cer_percent": accuracy.cer_percent,
        "wer_percent": accuracy.wer_percent,
        "status": "ok",
    }

"""`hybrid-deploy compare`: variants x backends -> speed and accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybrid_deploy.accuracy.default_normalizer import normalizer_for
from hybrid_deploy.accuracy.normalizers import AS_DECODED, Normalizer
from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.cli.compare_accuracy import (
    Reading,
    accuracy_record,
    float_reading,
    read_accuracy,
)
from hybrid_deploy.cli.compare_output import report
from hybrid_deploy.cli.options.common import BUNDLE, FORMAT, THREADS
from hybrid_deploy.cli.options.paths import PATH
from hybrid_deploy.cli.options.samples import NORMALIZE
from hybrid_deploy.cli.output import log, say
from hybrid_deploy.cli.progress import progress_bar
from hybrid_deploy.errors import BackendError, HybridDeployError
from hybrid_deploy.labels import (
    LabelledFile,
    load_labels,
)
from hybrid_deploy.progress import Progress, part_of, silent
from hybrid_deploy.report import Format

if TYPE_CHECKING:
    from hybrid_deploy.runtime.generation.options import GenerateOptions

_BYTES_PER_MB = 1e6
_WARMUP = 5
_FAILED = "failed"
_NO_VOCABULARY = "no accuracy: the bundle has no vocabulary, so its tokens are no text"


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
@NORMALIZE
@click.option(
    "--worst", type=click.IntRange(min=0), default=5, show_default=True,
    help="How many inputs to show of each variant, those that lose most against float.",
)  # fmt: skip
@click.option("--language", metavar="CODE", help="Language of the samples: de. (Whisper)")
@click.option("--task", help="transcribe, or translate into English. (Whisper)")
@THREADS
@FORMAT
def compare(
    bundle: Path,
    samples: Path,
    variants: tuple[str, ...],
    backends: tuple[str, ...],
    normalize: str | None,
    worst: int,
    language: str | None,
    task: str | None,
    threads: int | None,
    output_format: Format,
) -> None:
    """Read every sample with every variant of BUNDLE on every backend.

    Times are medians of single inputs. Accuracy is over all samples, with 95 % bootstrap intervals;
    those of the changes against float are paired. A variant that cannot run says so in its row and
    does not stop the others; if none can run, the command fails. A number that was not measured is
    a dash.
    """
    from hybrid_deploy.runtime.backends.probing import usable_backends
    from hybrid_deploy.runtime.generation.options import GenerateOptions

    opened, labels = open_bundle(bundle), load_labels(samples)
    normalizer = _normalizer(opened, labels, normalize or _default_for_call(language, task))
    chosen = list(variants) or list(opened.manifest.variants)
    for variant in chosen:
        opened.variant(variant)
    usable = usable_backends()
    pairs = [(variant, backend) for variant in chosen for backend in backends or usable]
    options = GenerateOptions(language=language, task=task)
    with progress_bar("compare", len(pairs) * len(labels)) as bar:
        rows = compare_rows(opened, labels, pairs, threads, normalizer, worst, bar, options)
    say(report(rows, output_format, len(labels), normalizer), nl=False)
    check_rows(rows, bundle)
    used = ", ".join(dict.fromkeys(backend for _, backend in pairs))
    log(f"{len(labels)} inputs one by one on {used}, medians; {threads or 'default'} CPU threads")


def _normalizer(bundle: Bundle, labels: Sequence[LabelledFile], name: str | None) -> Normalizer:
    """Returns the normaliser of the texts; without a vocabulary there are none."""
    if bundle.manifest.vocabulary is None:
        return AS_DECODED
    return normalizer_for(bundle, [label.text for label in labels], name)


def _default_for_call(language: str | None, task: str | None) -> str | None:
    """Returns the normaliser of what a call makes Whisper write; None if the call does not say."""
    if task == "translate" or language == "en":
        return "whisper"
    return None if language is None else "basic"


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


def compare_rows(
    bundle: Bundle,
    labels: Sequence[LabelledFile],
    pairs: Sequence[tuple[str, str]],
    threads: int | None,
    normalizer: Normalizer = AS_DECODED,
    worst: int = 0,
    progress: Progress = silent,
    options: GenerateOptions | None = None,
) -> list[dict[str, object]]:
    """Returns a record for each pair (variant, backend); a pair that fails is a record too.

    Args:
        bundle: bundle that is measured.
        labels: inputs with their expected texts.
        pairs: names of variant and backend.
        threads: number of CPU threads; None leaves the choice to the backend.
        normalizer: what texts pass before they are compared.
        worst: largest number of inputs in a row's `worst`, those that lose most.
        progress: called after each input, with the counts of finished inputs and of all inputs of
            all pairs.
        options: options of the generation; None takes the bundle's defaults.
    """
    rows: list[dict[str, object]] = []
    readings: dict[int, Reading] = {}
    total = len(pairs) * len(labels)
    for number, (variant, backend) in enumerate(pairs):
        part = part_of(progress, "compare", number * len(labels), total)
        row: dict[str, object] = {"variant": variant, "backend": backend}
        row["size_mb"] = bundle.variant_size_bytes(variant) / _BYTES_PER_MB
        try:
            texts, speed = _measure(bundle, variant, backend, labels, threads, part, options)
        except HybridDeployError as error:
            row["status"] = f"{_FAILED}: {' '.join(str(error).split())}"
            log(f"{variant} on {backend} failed: {error}")
        else:
            row |= speed | {"status": _NO_VOCABULARY}
            if bundle.manifest.vocabulary is not None:
                readings[number] = read_accuracy(variant, backend, labels, texts, normalizer)
        rows.append(row)
    reference = float_reading(list(readings.values()))
    for number, reading in readings.items():
        rows[number] |= accuracy_record(reading, reference, labels, worst)
    return rows


def _measure(
    bundle: Bundle,
    variant: str,
    backend: str,
    labels: Sequence[LabelledFile],
    threads: int | None,
    progress: Progress,
    options: GenerateOptions | None,
) -> tuple[list[str], dict[str, object]]:
    """Returns the text of each input, and the median times."""
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
    profile = summarize(timings, tokens, sum(t.total_ms for t in timings) / 1e3)
    next_token = profile.stage("next token")
    return texts, {
        "encoder_ms": profile.stage("encoder").p50_ms,
        "token_ms": next_token.p50_ms if next_token.count else None,
        "total_ms": profile.stage("total").p50_ms,
    }

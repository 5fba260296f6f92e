"""`hybrid-deploy verify`: a bundle -> whether its files and its golden samples are right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybrid_deploy.cli.options.common import BACKEND, BUNDLE, FORMAT
from hybrid_deploy.cli.options.trust import AT_LEAST, trust_of, trusted_keys
from hybrid_deploy.cli.output import log, say
from hybrid_deploy.contract import FLOAT_VARIANT
from hybrid_deploy.errors import (
    BundleError,
    CapacityError,
    HybridDeployError,
    InputError,
    UsageError,
)
from hybrid_deploy.report import Column, Format, render

if TYPE_CHECKING:
    from hybrid_deploy.bundle.bundle import Bundle
    from hybrid_deploy.bundle.manifest import GoldenSample
    from hybrid_deploy.runtime.session.results import GenerationResult
    from hybrid_deploy.runtime.session.session import Session

COLUMNS = (
    Column("variant", "variant"),
    Column("samples", "golden samples", digits=0),
    Column("tokens", "tokens", digits=0),
    Column("equal", "equal", digits=0),
    Column("verdict", "verdict"),
)

OK = "ok"
"""Verdict of a variant that decodes the golden samples as the original model did."""


@click.command(epilog="Example: hybrid-deploy verify digits.bundle")
@BUNDLE
@BACKEND
@trusted_keys("--trusted")
@AT_LEAST
@FORMAT
def verify(
    bundle: Path,
    backend: str,
    keys: tuple[Path, ...],
    at_least: int | None,
    output_format: Format,
) -> None:
    """Check every file of BUNDLE, then decode its golden samples with every variant.

    A golden sample holds the tokens and the text of the original model. The float variant must
    decode the same; if a quantized variant differs, or cannot run on this machine, its row says so.
    On the CPU, all decoder graphs of a variant must choose the same tokens for a sample.
    The command fails if the float variant, or every variant of a bundle without one, is not as the
    original model. It fails too if there are no golden samples. With --trusted, one of these keys
    must have signed BUNDLE.
    """
    from hybrid_deploy.bundle.bundle import open_bundle

    trust = trust_of(keys, at_least, "--trusted")
    opened = open_bundle(bundle, trust=trust)
    if trust is not None:
        log(f"{bundle} is signed by a trusted key")
    log(f"{len(opened.manifest.files)} files are as they were written")
    rows = [_variant_row(opened, variant, backend) for variant in opened.manifest.variants]
    say(render(rows, COLUMNS, output_format), nl=False)
    if not opened.manifest.golden:
        raise BundleError(
            f"{bundle} has no golden samples to decode, so no variant was checked; "
            "export it again with --samples FOLDER"
        )
    decisive = [row for row in rows if row["variant"] == FLOAT_VARIANT] or rows
    if all(row["verdict"] != OK for row in decisive):
        raise BundleError(f"{bundle} does not give the original model's tokens on this machine")


def _variant_row(bundle: Bundle, variant: str, backend: str) -> dict[str, object]:
    """Returns the row of a variant; only the float variant must run on this machine."""
    from hybrid_deploy.bundle.golden_copy import golden_copy
    from hybrid_deploy.runtime.backends.onnxruntime.graph_check import check_decoder_graphs
    from hybrid_deploy.runtime.backends.registry import (
        DEFAULT_BACKEND,
        BackendOptions,
        load_backend,
    )
    from hybrid_deploy.runtime.session.session import Session

    golden = bundle.manifest.golden
    tokens = sum(len(sample.tokens) for sample in golden)
    row: dict[str, object] = {"variant": variant, "samples": len(golden), "tokens": tokens}
    if not golden:
        return row | {"verdict": "not checked: no golden samples"}
    try:
        loaded = load_backend(backend, bundle, variant, BackendOptions())
        session = Session(bundle, variant, loaded)
        longest = max(golden, key=lambda sample: len(sample.tokens))
        with golden_copy(bundle) as folder:
            decoded = [_decoded(session, folder, sample) for sample in golden]
            inputs = session.prepare([folder / longest.file] * _rows(session))
        del session, loaded  # the next check loads the graphs again
        if backend == DEFAULT_BACKEND:
            generated = decoded[golden.index(longest)].tokens
            defaults = bundle.manifest.generation
            read = (*defaults.start_tokens, *longest.prompt, *generated) or (defaults.pad_token,)
            check_decoder_graphs(bundle, variant, inputs, read)
    except HybridDeployError as error:
        if variant == FLOAT_VARIANT:
            raise
        return row | {"verdict": f"not run: {error}"}
    pairs = list(zip(decoded, golden, strict=True))
    equal = sum(result.tokens == sample.tokens for result, sample in pairs)
    verdict = OK
    if equal < len(golden):
        verdict = "differs from the original model"
    elif any((result.text or "") != sample.text for result, sample in pairs):
        verdict = "the tokens are the original model's, their text is not"
    return row | {"equal": equal, "verdict": verdict}


def _decoded(session: Session, folder: Path, sample: GoldenSample) -> GenerationResult:
    """Returns what a session decodes from a sample, asked as the original model was."""
    from hybrid_deploy.runtime.generation.options import GenerateOptions

    limit = sample.max_new_tokens
    options = None if limit is None else GenerateOptions(max_new_tokens=limit)
    paths = [folder / sample.file] * _rows(session)
    try:
        return session.run_files(paths, prompt=sample.prompt, options=options)[0][0]
    except (
        CapacityError,
        InputError,
        UsageError,
    ) as error:  # the sample is the bundle's, and not the user's
        reason = str(error).replace(str(folder), str(session.bundle.folder))
        raise BundleError(
            f"golden sample {session.bundle.folder / sample.file} cannot be decoded: {reason}; "
            "install what is missing, or export the bundle again"
        ) from error


def _rows(session: Session) -> int:
    """Returns in how many rows a sample is decoded: in all where the graphs have a fixed batch."""
    from hybrid_deploy.contract import GraphRole

    batch = session.bundle.graph(session.variant, GraphRole.ENCODER).inputs[0].shape[0]
    return batch if isinstance(batch, int) else 1

"""`hybrid-deploy run`: inputs -> text."""

from __future__ import annotations

from pathlib import Path

import click

from hybrid_deploy.cli.options import BACKEND, BUNDLE, FILES, THREADS, VARIANT


@click.command(epilog="Example: hybrid-deploy run digits.bundle line.png other.png")
@BUNDLE
@FILES
@VARIANT
@BACKEND
@THREADS
@click.option(
    "--format", "output_format", type=click.Choice(["text", "json"]), default="text",
    show_default=True, help="Only the text, a line per file, or everything.",
)  # fmt: skip
def run(
    bundle: Path,
    files: tuple[Path, ...],
    variant: str,
    backend: str,
    threads: int | None,
    output_format: str,
) -> None:
    """Read FILES with BUNDLE and print the text of each, in their order."""
    import msgspec

    from hybrid_deploy.runtime.session import load_session

    session = load_session(bundle, variant=variant, backend=backend, threads=threads)
    records = []
    for file in files:
        (result,), timings = session.run_files([file])
        if output_format == "text":
            text = " ".join(map(str, result.tokens)) if result.text is None else result.text
            click.echo(text)
        records.append(
            {
                "file": str(file),
                "text": result.text,
                "tokens": result.tokens,
                "scores": result.scores,
                "finish": result.finish,
                "preprocess_ms": timings.preprocess_ms,
                "encoder_ms": timings.encoder_ms,
                "first_token_ms": timings.first_token_ms,
                "step_ms": timings.step_ms,
                "total_ms": timings.total_ms,
            }
        )
    if output_format == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(records), indent=1).decode())

"""`hybrid-deploy run`: inputs -> text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybrid_deploy.cli.options import BACKEND, BUNDLE, THREADS, VARIANT
from hybrid_deploy.errors import UsageError

if TYPE_CHECKING:
    from hybrid_deploy.runtime.session import Result, Timings


@click.command(epilog="Example: hybrid-deploy run digits.bundle line.png other.png")
@BUNDLE
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--text", help="What the encoder takes besides each file, or instead of files: a question."
)
@click.option("--prompt", metavar="IDS", help="Tokens to continue, after the start tokens: 1,5,7.")
@click.option("--prompt-text", help="Text to continue, through the bundle's tokenizer.")
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
    text: str | None,
    prompt: str | None,
    prompt_text: str | None,
    variant: str,
    backend: str,
    threads: int | None,
    output_format: str,
) -> None:
    """Read FILES with BUNDLE and print the text of each, in their order.

    FILES are pictures, sound (.wav), texts (.txt) or arrays (.npy, .npz), as the bundle takes them.
    """
    import msgspec

    from hybrid_deploy.runtime.session import load_session

    if not files and text is None:
        raise click.UsageError("Missing argument 'FILES...'.")
    ids = [] if prompt is None else parse_prompt(prompt)
    session = load_session(bundle, variant=variant, backend=backend, threads=threads)
    ids += [] if prompt_text is None else session.prompt_tokens(prompt_text)
    texts = None if text is None else [text]
    records = []
    for file in files or (None,):
        (result,), timings = session.run_files([file] if file else [], texts=texts, prompt=ids)
        if output_format == "text":
            words = " ".join(map(str, result.tokens)) if result.text is None else result.text
            click.echo(words)
        records.append(_record(file, result, timings))
    if output_format == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(records), indent=1).decode())


def parse_prompt(text: str) -> list[int]:
    """Reads token ids with commas between them.

    Raises:
        UsageError: it is something else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"expected token ids with commas between them, as in 1,5,7, got {text!r}; "
            "a prompt in words goes to --prompt-text"
        ) from None


def _record(file: Path | None, result: Result, timings: Timings) -> dict[str, object]:
    return {
        "file": None if file is None else str(file),
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

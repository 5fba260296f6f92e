"""`hybrid-deploy run`: inputs -> texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from hybrid_deploy.cli.live_run import print_live
from hybrid_deploy.cli.options.common import BACKEND, BUNDLE, THREADS, VARIANT
from hybrid_deploy.cli.options.generation import generation_options, options_of
from hybrid_deploy.cli.options.paths import INPUT
from hybrid_deploy.cli.options.speech import (
    SUBTITLES,
    SpeechOptions,
    speech_options,
    speech_options_of,
)
from hybrid_deploy.cli.options.trust import AT_LEAST, trust_of, trusted_keys
from hybrid_deploy.cli.output import log, say
from hybrid_deploy.cli.run_output import RunOutcome
from hybrid_deploy.cli.speech_run import check_speech_request, speech_outcomes, subtitles_of
from hybrid_deploy.errors import HybridDeployError, UsageError
from hybrid_deploy.printable import one_line
from hybrid_deploy.report import json_text

if TYPE_CHECKING:
    from hybrid_deploy.runtime.generation.options import GenerateOptions
    from hybrid_deploy.runtime.session.session import Session


@click.command(
    epilog="Example: hybrid-deploy run digits.bundle line.png --beams 4 --pattern '[0-9]+'"
)
@BUNDLE
@click.argument("files", nargs=-1, type=INPUT)
@click.option(
    "--text", help="What the encoder takes besides each file, or instead of files: a question."
)
@click.option("--prompt", metavar="IDS", help="Tokens to continue, after the start tokens: 1,5,7.")
@click.option(
    "--prompt-text",
    help="Words to ask, in the bundle's template if it has one; else a text to continue.",
)
@generation_options
@click.option("--stream", is_flag=True, help="Print the text while it is made.")
@speech_options
@VARIANT
@BACKEND
@THREADS
@trusted_keys("--require-signature")
@AT_LEAST
@click.option(
    "--format", "output_format", type=click.Choice(["text", "json", *SUBTITLES]),
    default="text", show_default=True,
    help="Only the text, a line per file with its line breaks as \\n; everything; or subtitles.",
)  # fmt: skip
def run(
    bundle: Path,
    files: tuple[Path, ...],
    text: str | None,
    prompt: str | None,
    prompt_text: str | None,
    stream: bool,
    variant: str,
    backend: str,
    threads: int | None,
    keys: tuple[Path, ...],
    at_least: int | None,
    output_format: str,
    **generation: Any,
) -> None:
    """Read FILES with BUNDLE and print the text of each, in their order.

    FILES are pictures, sound (.wav), texts (.txt), arrays (.npy, .npz) or videos (a folder of
    frames, .gif), as the bundle takes them. One that fails is named, and the others are read.
    """
    from hybrid_deploy.runtime.deadline import Until
    from hybrid_deploy.runtime.session.session import load_session

    speech = speech_options_of(generation, output_format)
    _check_request(files, text, speech, stream=stream, output_format=output_format)
    if speech.live and (prompt is not None or prompt_text is not None):
        raise click.UsageError("live sound takes no --prompt and --prompt-text.")
    ids = [] if prompt is None else parse_prompt(prompt)
    options = options_of(generation)
    trust = trust_of(keys, at_least, "--require-signature")
    session = load_session(bundle, variant=variant, backend=backend, threads=threads, trust=trust)
    if prompt_text is not None:
        asks_encoder, asks_decoder = readers_of_words(session, text)
        with Until(None if options.timeout_s is None else perf_counter() + options.timeout_s):
            ids += session.prompt_tokens(prompt_text) if asks_decoder else []
        text = prompt_text if asks_encoder else text
    job = _RunJob(session, files, None if text is None else [text], ids, options)
    if speech.live:
        print_live(session, options, speech, output_format)
    elif stream:
        job.print_stream()
    else:
        _print_outcomes(job, speech, output_format)


def _check_request(
    files: Sequence[Path],
    text: str | None,
    speech: SpeechOptions,
    *,
    stream: bool,
    output_format: str,
) -> None:
    if not files and text is None and not speech.live:
        raise click.UsageError("Missing argument 'FILES...'.")
    check_speech_request(files, text, speech, stream=stream)
    if stream and output_format == "json":
        raise click.UsageError("--stream prints text as it comes, without --format json.")


def _print_outcomes(job: _RunJob, speech: SpeechOptions, output_format: str) -> None:
    """Prints every outcome; a failure of one of several inputs does not stop the others."""
    outcomes, failures = [], 0
    for outcome in job.speech(speech) if speech.used else job.outcomes():
        if outcome.error is not None:
            if len(job.files) <= 1 and outcome.span_s is None:
                raise outcome.error
            failures += 1
            log(f"{outcome.file}: {outcome.error}")
        else:
            if output_format == "text":
                say("\n".join(outcome.lines(job.options.n_best)))
            if output_format != "json":
                for remark in outcome.remarks():
                    log(remark)
        outcomes.append(outcome)
    if output_format == "json":
        say(json_text([outcome.record() for outcome in outcomes]))
    elif speech.subtitles:
        say(subtitles_of(outcomes, output_format), nl=False)
    if failures:
        raise HybridDeployError(f"{failures} of {len(outcomes)} inputs failed; see the lines above")


def readers_of_words(session: Session, text: str | None) -> tuple[bool, bool]:
    """Returns whether the encoder, and whether the decoder, reads the words of --prompt-text.

    An encoder that takes a text with each file is asked, unless --text has its text. The decoder
    continues the words where the encoder does not read them, or where it has a template for them.

    Args:
        session: session of the bundle.
        text: value of --text.
    """
    from hybrid_deploy.runtime.preprocess.prepare import takes_text_beside_files

    manifest = session.bundle.manifest
    asks_encoder = text is None and takes_text_beside_files(manifest.preprocess)
    return asks_encoder, not asks_encoder or manifest.prompt is not None


def parse_prompt(text: str) -> list[int]:
    """Returns the token ids of a text such as `1,5,7`.

    Raises:
        UsageError: the text is something else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"expected token ids separated by commas, as in 1,5,7, got {text!r}; "
            "a prompt in words goes to --prompt-text"
        ) from None


@dataclass(frozen=True)
class _RunJob:
    """The inputs of one call of `run`, and the session that decodes them.

    Attributes:
        session: session that decodes the inputs.
        files: paths of the inputs; may be empty if there is a text.
        texts: text that the encoder takes besides each file, as a list of one; None for no text.
        prompt: ids of the tokens to continue, after the start tokens.
        options: generation options.
    """

    session: Session
    files: Sequence[Path]
    texts: list[str] | None
    prompt: Sequence[int]
    options: GenerateOptions

    def outcomes(self) -> Iterator[RunOutcome]:
        """Decodes the inputs one by one; without texts, the next files are prepared meanwhile."""
        if self.texts is None:
            outcomes = self.session.run_many(self.files, prompt=self.prompt, options=self.options)
            for file, outcome in zip(self.files, outcomes, strict=True):
                yield RunOutcome(file, outcome.result, outcome.timings, outcome.error)
            return
        for path in self.files or (None,):
            yield self._with_text(path)

    def speech(self, speech: SpeechOptions) -> Iterator[RunOutcome]:
        """Decodes recordings part by part."""
        return speech_outcomes(self.session, self.files, self.prompt, self.options, speech)

    def print_stream(self) -> None:
        """Prints the text of each input while it is generated."""
        for file in self.files or (None,):
            files = [file] if file else []
            with self.session.stream(
                files, texts=self.texts, prompt=self.prompt, options=self.options
            ) as stream:
                for event in stream:
                    text = f"{event.token} " if event.text is None else one_line(event.text)
                    say(text, nl=False)
            say()
            for remark in RunOutcome(file, stream.results[0], stream.timings).remarks():
                log(remark)

    def _with_text(self, file: Path | None) -> RunOutcome:
        try:
            (result,), timings = self.session.run_files(
                [file] if file else [], texts=self.texts, prompt=self.prompt, options=self.options
            )
        except HybridDeployError as error:
            return RunOutcome(file, error=error)
        return RunOutcome(file, result, timings)

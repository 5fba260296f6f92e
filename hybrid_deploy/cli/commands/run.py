"""`hybrid-deploy run`: inputs -> texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from hybrid_deploy.cli.options.common import BACKEND, BUNDLE, THREADS, VARIANT
from hybrid_deploy.cli.options.generation import generation_options, options_of
from hybrid_deploy.cli.options.paths import INPUT
from hybrid_deploy.cli.options.trust import AT_LEAST, trust_of, trusted_keys
from hybrid_deploy.cli.output import log, say
from hybrid_deploy.errors import HybridDeployError, UsageError
from hybrid_deploy.printable import one_line
from hybrid_deploy.report import json_text

if TYPE_CHECKING:
    from hybrid_deploy.runtime.generation.options import GenerateOptions
    from hybrid_deploy.runtime.session.results import GenerationResult, Timings
    from hybrid_deploy.runtime.session.session import Session

_CUT = ("timeout", "cancelled")  # reasons to finish before the text is complete


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
@click.option("--long", is_flag=True, help="Cut long sound into parts, a line for each.")
@VARIANT
@BACKEND
@THREADS
@trusted_keys("--require-signature")
@AT_LEAST
@click.option(
    "--format", "output_format", type=click.Choice(["text", "json"]), default="text",
    show_default=True,
    help="Only the text, a line per file with its line breaks as \\n, or everything.",
)  # fmt: skip
def run(
    bundle: Path,
    files: tuple[Path, ...],
    text: str | None,
    prompt: str | None,
    prompt_text: str | None,
    stream: bool,
    long: bool,
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

    _check_request(files, text, stream=stream, long=long, output_format=output_format)
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
    if stream:
        job.print_stream()
    else:
        _print_outcomes(job, long=long, output_format=output_format)


def _check_request(
    files: Sequence[Path], text: str | None, *, stream: bool, long: bool, output_format: str
) -> None:
    if not files and text is None:
        raise click.UsageError("Missing argument 'FILES...'.")
    if stream and (long or output_format == "json"):
        raise click.UsageError(
            "--stream prints text as it comes, without --long and --format json."
        )
    if long and (text is not None or not files):
        raise click.UsageError("--long takes sound files alone.")


def _print_outcomes(job: _RunJob, *, long: bool, output_format: str) -> None:
    """Prints every outcome; a failure of one of several inputs does not stop the others."""
    records, failures = [], 0
    for outcome in job.long_sound() if long else job.outcomes():
        if outcome.error is not None:
            if len(job.files) <= 1 and outcome.span_s is None:
                raise outcome.error
            failures += 1
            log(f"{outcome.file}: {outcome.error}")
        elif output_format == "text":
            say("\n".join(outcome.lines(job.options.n_best)))
            for remark in outcome.remarks():
                log(remark)
        records.append(outcome.record())
    if output_format == "json":
        say(json_text(records))
    if failures:
        raise HybridDeployError(f"{failures} of {len(records)} inputs failed; see the lines above")


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
class _Outcome:
    """Result of one input, or the error that prevented it.

    Attributes:
        file: path of the input; None if there is only a text.
        result: text and tokens; None after an error.
        timings: time of each stage; None after an error.
        error: why there is no result; None if there is one.
        span_s: begin and end of the part of a recording, in seconds; None for a whole input.
    """

    file: Path | None
    result: GenerationResult | None = None
    timings: Timings | None = None
    error: HybridDeployError | None = None
    span_s: tuple[float, float] | None = None

    def lines(self, n_best: int) -> list[str]:
        """Returns the text, or the score and text of each of the `n_best` beams, as lines."""
        assert self.result is not None
        if n_best == 1:
            return [_text_of(self.result)]
        ranked = (self.result, *self.result.alternatives)
        return [f"{_score_of(result)}\t{_text_of(result)}" for result in ranked]

    def remarks(self) -> list[str]:
        """Returns what the user has to know about the text, as lines for stderr."""
        assert self.result is not None and self.timings is not None
        finish = self.result.finish
        cut = [f"ended early ({finish}): the text may be incomplete"] if finish in _CUT else []
        return [f"{self.file or 'text'}: {remark}" for remark in (*cut, *self.timings.notes)]

    def record(self) -> dict[str, object]:
        """Returns the outcome as a record for JSON."""
        record: dict[str, object] = {"file": None if self.file is None else str(self.file)}
        if self.span_s is not None:
            record |= {"begin_s": self.span_s[0], "end_s": self.span_s[1]}
        if self.result is None or self.timings is None:
            return record | {"error": str(self.error)}
        record |= _result_record(self.result)
        record |= {
            "preprocess_ms": self.timings.preprocess_ms,
            "encoder_ms": self.timings.encoder_ms,
            "first_token_ms": self.timings.first_token_ms,
            "step_ms": self.timings.step_ms,
            "total_ms": self.timings.total_ms,
        }
        return record | ({"notes": self.timings.notes} if self.timings.notes else {})


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

    def outcomes(self) -> Iterator[_Outcome]:
        """Decodes the inputs one by one; without texts, the next files are prepared meanwhile."""
        if self.texts is None:
            outcomes = self.session.run_many(self.files, prompt=self.prompt, options=self.options)
            for file, outcome in zip(self.files, outcomes, strict=True):
                yield _Outcome(file, outcome.result, outcome.timings, outcome.error)
            return
        for path in self.files or (None,):
            yield self._with_text(path)

    def long_sound(self) -> Iterator[_Outcome]:
        """Decodes recordings part by part."""
        for file in self.files:
            try:
                parts = self.session.run_long_audio(file, prompt=self.prompt, options=self.options)
                for part in parts:
                    span_s = (part.item.begin_s, part.item.end_s)
                    yield _Outcome(file, part.result, part.timings, part.error, span_s)
            except HybridDeployError as error:
                yield _Outcome(file, error=error)

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
            for remark in _Outcome(file, stream.results[0], stream.timings).remarks():
                log(remark)

    def _with_text(self, file: Path | None) -> _Outcome:
        try:
            (result,), timings = self.session.run_files(
                [file] if file else [], texts=self.texts, prompt=self.prompt, options=self.options
            )
        except HybridDeployError as error:
            return _Outcome(file, error=error)
        return _Outcome(file, result, timings)


def _text_of(result: GenerationResult) -> str:
    """Returns the text as one line; without a vocabulary, the token ids separated by spaces."""
    return " ".join(map(str, result.tokens)) if result.text is None else one_line(result.text)


def _score_of(result: GenerationResult) -> str:
    """Returns the score of a beam; a dash if the search ended before there was one."""
    return "-" if result.sequence_score is None else f"{result.sequence_score:.4f}"


def _result_record(result: GenerationResult) -> dict[str, object]:
    record: dict[str, object] = {
        "text": result.text,
        "tokens": result.tokens,
        "finish": result.finish,
    }
    if result.scores is not None:
        record["scores"] = result.scores
    if result.sequence_score is not None:
        record["total"] = result.sequence_score
    if result.alternatives:
        record["others"] = [_result_record(beam) for beam in result.alternatives]
    return record

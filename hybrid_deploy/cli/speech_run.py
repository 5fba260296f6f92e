"""Runs speech: the parts of each recording as outcomes of `run`, and subtitles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid_deploy.cli.options.speech import SpeechOptions
from hybrid_deploy.cli.run_output import RunOutcome
from hybrid_deploy.errors import HybridDeployError, UsageError

if TYPE_CHECKING:
    from hybrid_deploy.runtime.generation.options import GenerateOptions
    from hybrid_deploy.runtime.session.session import Session


def speech_outcomes(
    session: Session,
    files: Sequence[Path],
    prompt: Sequence[int],
    options: GenerateOptions,
    speech: SpeechOptions,
) -> Iterator[RunOutcome]:
    """Decodes recordings part by part; yields the outcome of each part.

    Args:
        session: session of the bundle.
        files: sound files.
        prompt: ids of tokens to continue, after the start tokens.
        options: generation options.
        speech: options for speech.
    """
    from hybrid_deploy.runtime.speech.transcribe import transcribe

    tokens = session.bundle.manifest.speech
    knows_times = tokens is not None and tokens.no_timestamps is not None
    options = replace(options, timestamps=speech.timestamps or (speech.subtitles and knows_times))
    for file in files:
        try:
            parts = transcribe(
                session, file, prompt=prompt, options=options, long=speech.long_form()
            )
            for part in parts:
                yield RunOutcome(
                    file,
                    part.result,
                    part.timings,
                    part.error,
                    (part.span.begin_s, part.span.end_s) if speech.long else None,
                    part.segments if speech.timestamps or speech.subtitles else None,
                )
        except HybridDeployError as error:
            yield RunOutcome(file, error=error)


def subtitles_of(outcomes: Sequence[RunOutcome], output_format: str) -> str:
    """Returns the segments of all outcomes as subtitles.

    Args:
        outcomes: the parts of one recording.
        output_format: `srt` or `vtt`.
    """
    from hybrid_deploy.runtime.speech import subtitles

    write = subtitles.srt if output_format == "srt" else subtitles.vtt
    return write([segment for outcome in outcomes for segment in outcome.segments or ()])


def check_speech_request(
    files: Sequence[Path], text: str | None, speech: SpeechOptions, *, stream: bool
) -> None:
    """Checks the options for speech against the rest of the request.

    Raises:
        UsageError: they exclude each other.
    """
    is_stdin = [str(file) for file in files] == ["-"]
    if speech.live:
        if (
            speech.used
            or stream
            or text is not None
            or (files and (speech.microphone or not is_stdin))
        ):
            raise UsageError(
                "live sound is FILES - with --pcm, or --microphone without FILES; it goes without "
                "--text, --stream, --long, --timestamps and subtitles"
            )
        return
    if is_stdin:
        raise UsageError("- is raw sound on stdin; say its form, as --pcm s16le --rate 16000")
    if not speech.used:
        return
    if text is not None or not files:
        raise UsageError("--long, --timestamps and subtitles take sound files alone.")
    if stream:
        raise UsageError("--stream prints text as it comes, without times and --long.")
    if speech.subtitles and len(files) > 1:
        raise UsageError("subtitles belong to one recording; run the files one by one.")

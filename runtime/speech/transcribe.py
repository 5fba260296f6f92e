"""Decodes a sound file to segments with times: whole, cut where it is quiet, or at timestamps."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from hybrid_deploy.argument_checks import path_of
from hybrid_deploy.bundle.input_specs import AudioInput
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.preprocess.audio import load_audio, most_samples_of
from hybrid_deploy.runtime.session.results import GenerationResult
from hybrid_deploy.runtime.session.session import Session
from hybrid_deploy.runtime.speech.fallback import FallbackRules
from hybrid_deploy.runtime.speech.parts import Part
from hybrid_deploy.runtime.speech.segments import (
    Segment,
    Span,
    split_segments,
    text_function,
)
from hybrid_deploy.runtime.speech.sequential import SequentialDecoder

Cut: TypeAlias = Literal["quiet", "timestamps"]
"""Where a long recording is cut: where it is quiet, or at the model's own timestamps."""


@dataclass(frozen=True)
class LongForm:
    """How a recording is decoded that may be longer than the model's window.

    Attributes:
        cut: `quiet` cuts it where it is quiet; `timestamps` begins each window at the last
            timestamp of the one before, and decodes again what seems wrong.
        rules: when the text of a window is decoded again; None takes those of Whisper. Only for
            `timestamps`.
        condition_on_previous: whether a window reads the text before it. Only for `timestamps`.
    """

    cut: Cut = "quiet"
    rules: FallbackRules | None = None
    condition_on_previous: bool = False


def transcribe(
    session: Session,
    path: str | Path,
    *,
    prompt: Sequence[int] = (),
    options: GenerateOptions | None = None,
    long: LongForm | None = None,
    cancel: threading.Event | None = None,
) -> Iterator[Part]:
    """Returns an iterator over the parts of a sound file, in the order of time.

    A part has the segments that the model's timestamps make. Without timestamps it has one, as long
    as the part itself.

    Args:
        session: session of a bundle that takes sound alone.
        path: the sound file.
        prompt: ids of tokens that every part continues, after the start tokens; or that stand
            before them, if they begin with the token for earlier text.
        options: options of the generation; None takes the bundle's defaults. `timeout_s` counts for
            each part.
        long: how a long recording is cut; None decodes the file at once, and refuses one that is
            longer than the model's window.
        cancel: event that ends the decoding before its next token once it is set.

    Raises:
        InputError: the file cannot be used.
        UsageError: the model does not take sound alone, or lacks what the options ask for.
        BackendError: the backend failed.
    """
    spec = session.bundle.manifest.preprocess
    if not isinstance(spec, AudioInput):
        raise UsageError(
            f"{session.bundle.folder} does not take sound alone, so there are no segments of "
            "speech; run it without --timestamps, --long and subtitles"
        )
    options, path = options or GenerateOptions(), path_of(path)
    if long is None:
        return _whole(session, path, spec, prompt, options, cancel)
    if long.cut == "quiet":
        return _quiet(session, path, prompt, options, cancel)
    decoder = SequentialDecoder(
        session,
        options,
        long.rules,
        prompt=prompt,
        condition_on_previous=long.condition_on_previous,
    )
    return decoder.parts(load_audio(path, spec.sampling_rate), cancel)


def _whole(
    session: Session,
    path: Path,
    spec: AudioInput,
    prompt: Sequence[int],
    options: GenerateOptions,
    cancel: threading.Event | None,
) -> Iterator[Part]:
    rate = spec.sampling_rate
    span = Span(0.0, len(load_audio(path, rate, most_samples_of(spec))) / rate)
    (result,), timings = session.run_files([path], prompt=prompt, options=options, cancel=cancel)
    yield Part(span, _segments(session, result, span, options), result, timings)


def _quiet(
    session: Session,
    path: Path,
    prompt: Sequence[int],
    options: GenerateOptions,
    cancel: threading.Event | None,
) -> Iterator[Part]:
    outcomes = session.run_long_audio(path, prompt=prompt, options=options, cancel=cancel)
    for outcome in outcomes:
        span = Span(outcome.item.begin_s, outcome.item.end_s)
        if outcome.result is None:
            yield Part(span, error=outcome.error)
            continue
        segments = _segments(session, outcome.result, span, options)
        yield Part(span, segments, outcome.result, outcome.timings)


def _segments(
    session: Session, result: GenerationResult, span: Span, options: GenerateOptions
) -> tuple[Segment, ...]:
    """Returns the segments of a part; one of the whole part without timestamps."""
    manifest, text = session.bundle.manifest, text_function(session)
    tokens = result.tokens
    if tokens and tokens[-1] in manifest.generation.end_tokens:
        tokens = tokens[:-1]
    if options.timestamps and manifest.speech is not None:
        segments, _ = split_segments(tokens, manifest.speech, span, text, keep_rest=True)
        return tuple(segments)
    words = text(tokens) if result.text is None else result.text.strip()
    return (Segment(span.begin_s, span.end_s, words, tokens),) if words else ()

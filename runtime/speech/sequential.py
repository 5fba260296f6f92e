"""Decodes a long recording in windows that begin at the last timestamp of the one before.

The method is that of the Whisper paper (arXiv:2212.04356, section 4.5) and of `generate()` in
transformers: the features are those of the whole recording, and a window ends where the model
completed its last segment.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.input_specs import AudioInput, LogMel
from hybrid_deploy.bundle.speech.speech_tokens import AUTO, SpeechTokens, speech_tokens_of
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.preprocess.audio import batch_audio
from hybrid_deploy.runtime.preprocess.audio_features import Floats, LongLogMel
from hybrid_deploy.runtime.session.results import GenerationResult
from hybrid_deploy.runtime.session.session import Session
from hybrid_deploy.runtime.speech.fallback import FallbackRules, decode_window
from hybrid_deploy.runtime.speech.parts import Part
from hybrid_deploy.runtime.speech.segments import Segment, Span, split_segments, text_function

_WARM = 0.5
"""Temperature from which on a text is not given to the next window, since it may be wrong."""


class SequentialDecoder:
    """Decodes long recordings with one session.

    Args:
        session: session of a bundle that takes log-mel features and knows timestamps.
        options: options of the generation; timestamps are always made.
        rules: when a window's text is rejected.
        prompt: ids of tokens that stand before every window, beginning with the token for earlier
            text; () for none.
        condition_on_previous: whether each window reads the text of the windows before.

    Raises:
        UsageError: the bundle does not take log-mel features, or knows no timestamps.
    """

    def __init__(
        self,
        session: Session,
        options: GenerateOptions | None = None,
        rules: FallbackRules | None = None,
        *,
        prompt: Sequence[int] = (),
        condition_on_previous: bool = False,
    ) -> None:
        manifest, folder = session.bundle.manifest, session.bundle.folder
        self._session = session
        self._spec, self._features = log_mel_input(session)
        self._speech: SpeechTokens = speech_tokens_of(manifest.speech, str(folder))
        self._speech.first_timestamp  # noqa: B018  # refuses a model without timestamps
        self._options = replace(options or GenerateOptions(), timestamps=True)
        self._rules = rules or FallbackRules()
        self._prompt = tuple(prompt)
        self._conditions = condition_on_previous
        self._text = text_function(session)
        if condition_on_previous and self._speech.previous is None:
            raise UsageError(f"{folder} has no token for the text of earlier windows; leave it out")

    def parts(self, signal: Floats, cancel: threading.Event | None = None) -> Iterator[Part]:
        """Decodes a recording; yields its windows in the order of time.

        Args:
            signal: samples, (samples,) float32 within -1..1, at the model's rate.
            cancel: event that ends the decoding before the next window once it is set.

        Raises:
            BackendError: the backend failed.
        """
        rate, hop = self._spec.sampling_rate, self._features.hop
        source = _Windows(signal, self._spec, self._features)
        options, previous, seek = self._options, list[int](), 0
        while seek < source.frames and not (cancel is not None and cancel.is_set()):
            start = time.perf_counter()
            frames = min(source.window, source.frames - seek)
            inputs = {self._spec.name: source.features(seek, frames)}
            preprocess_ms = (time.perf_counter() - start) * 1e3
            with self._session.encode(inputs) as encoded:
                encoded.preprocess_ms = preprocess_ms
                window = decode_window(
                    self._session, encoded, self._before(previous), options, self._rules
                )
            if options.language == AUTO:
                options = replace(options, language=window.result.language)
            span = Span(seek * hop / rate, min((seek + frames) * hop, len(signal)) / rate)
            segments, next_s = self._segments(window.result, span)
            if window.silent:
                segments, next_s = [], span.end_s
            result = self._with_text_of(segments, window.result)
            yield Part(span, tuple(segments), result, window.timings, window.temperature)
            if window.result.finish in ("timeout", "cancelled"):
                return
            previous += [token for segment in segments for token in segment.tokens]
            if window.temperature >= _WARM:
                previous.clear()
            step = round(next_s * rate / hop) - seek
            seek += step if 0 < step < frames else frames

    def _before(self, previous: Sequence[int]) -> tuple[int, ...]:
        """Returns the tokens before the start tokens: the newest half of what the caches hold."""
        if not (self._conditions and previous):
            return self._prompt
        assert self._speech.previous is not None
        room = self._session.bundle.manifest.capacity // 2 - 1
        return (self._speech.previous, *previous[-room:])

    def _segments(self, result: GenerationResult, span: Span) -> tuple[list[Segment], float]:
        ends = self._session.bundle.manifest.generation.end_tokens
        tokens = result.tokens
        tokens = tokens[:-1] if tokens and tokens[-1] in ends else tokens
        return split_segments(tokens, self._speech, span, self._text)

    def _with_text_of(
        self, segments: Sequence[Segment], result: GenerationResult
    ) -> GenerationResult:
        """Returns the result with the text of the segments alone: the rest is decoded again."""
        if result.text is None:
            return result
        tokens = [token for segment in segments for token in segment.tokens]
        return replace(result, text=self._text(tokens))


def log_mel_input(session: Session) -> tuple[AudioInput, LogMel]:
    """Returns the sound input of a bundle and its log-mel features.

    Raises:
        UsageError: the bundle takes something else.
    """
    spec = session.bundle.manifest.preprocess
    if isinstance(spec, AudioInput) and isinstance(spec.features, LogMel):
        return spec, spec.features
    raise UsageError(
        f"{session.bundle.folder} does not take the log-mel features of sound alone, so it has no "
        "segments with times; run it without them"
    )


class _Windows:
    """The features of a recording, a window at a time."""

    def __init__(self, signal: Floats, spec: AudioInput, features: LogMel) -> None:
        self.frames = -(-len(signal) // features.hop)
        self.window = features.samples // features.hop
        self._short: NDArray[Any] | None = None
        self._long: LongLogMel | None = None
        if len(signal) <= features.samples:  # padded with silence, as for one input
            self._short = batch_audio([signal], spec)[spec.name]
        else:
            self.frames = len(signal) // features.hop
            self._long = LongLogMel(
                signal, spec.sampling_rate, features.mels, features.fft, features.hop
            )

    def features(self, begin: int, count: int) -> NDArray[np.float32]:
        """Returns the features of frames from `begin` on, (1, mels, window)."""
        if self._long is not None:
            return self._long.part(begin, count, self.window)[None]
        assert self._short is not None
        if begin == 0:
            return self._short
        part = self._short[:, :, begin : begin + count]
        return np.pad(part, ((0, 0), (0, 0), (0, self.window - part.shape[2])))

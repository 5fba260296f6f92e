"""Decodes sound while it is recorded, and yields the text as soon as it is firm.

The sound so far is decoded again and again. Text is firm once two decodings in a row agree on it
(local agreement: Liu et al. 2020, arXiv:2005.11185; for Whisper Machacek et al. 2023,
arXiv:2307.14743). A decoding continues the firm text, so that no later one changes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hybrid_deploy.argument_checks import is_number, shown
from hybrid_deploy.bundle.input_specs import AudioInput
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import InputError, UsageError
from hybrid_deploy.runtime.generation.incremental_text import (
    IncrementalDetokenizer,
    empty_detokenizer,
)
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.generation.sequences import vocabulary_size
from hybrid_deploy.runtime.preprocess.audio import batch_audio
from hybrid_deploy.runtime.preprocess.audio_features import Floats
from hybrid_deploy.runtime.preprocess.audio_windows import longest_s, quietest
from hybrid_deploy.runtime.preprocess.prepare import mask_names
from hybrid_deploy.runtime.session.input_checks import with_mask_types
from hybrid_deploy.runtime.session.session import Session
from hybrid_deploy.runtime.speech.fallback import (
    NO_FALLBACK,
    FallbackRules,
    compression_ratio,
    decode_window,
)
from hybrid_deploy.runtime.speech.segments import Span

_LONGEST_SHARE = 0.8
"""Share of the model's window after which a part ends at the next quiet point."""

_SHORTEST_S = 0.2
"""Sound that is too short to be decoded, in seconds."""


@dataclass(frozen=True)
class LiveText:
    """Text that has become firm.

    Attributes:
        text: the new text, to be appended to what came before; may be empty where a part ends.
        part: place in the sound of the part that ends with this text; None if none ends.
        part_text: whole text of the part that ends; empty if none ends.
    """

    text: str
    part: Span | None = None
    part_text: str = ""


class LiveDecoder:
    """Decodes one stream of sound with a session.

    Args:
        session: session of a bundle that takes sound alone and makes text.
        options: options of the generation, without timestamps, beams and sampling.
        part_s: seconds of sound after which a part ends at a quiet point; None takes 0.8 of the
            model's window.

    Raises:
        UsageError: the bundle does not take sound alone, has no vocabulary or start tokens, or an
            option does not go with live sound.
    """

    def __init__(
        self,
        session: Session,
        options: GenerateOptions | None = None,
        *,
        part_s: float | None = None,
    ) -> None:
        manifest, folder = session.bundle.manifest, session.bundle.folder
        spec, options = manifest.preprocess, options or GenerateOptions()
        if not isinstance(spec, AudioInput) or manifest.vocabulary is None:
            raise UsageError(
                f"{folder} does not make text of sound alone; live sound needs a bundle that does"
            )
        if options.timestamps or options.samples or (options.beams or 1) > 1:
            raise UsageError(
                "live text has no timestamps, beams or sampling; leave these options out, or run a "
                "file"
            )
        window_s = longest_s(spec)
        self.rate = spec.sampling_rate
        self._part_s = _LONGEST_SHARE * window_s if part_s is None else part_s
        if not (is_number(self._part_s) and 2 * _SHORTEST_S <= self._part_s <= window_s):
            raise UsageError(f"part_s must be 0.4 to {window_s:g}, got {shown(part_s)}")
        self._window = int(window_s * self.rate)
        self._session = session
        self._spec = spec
        self._options = replace(options, beams=1, scores=True)
        self._rules = replace(
            NO_FALLBACK,
            log_probability=FallbackRules.log_probability,
            no_speech=FallbackRules.no_speech,
        )
        self._encoder = session.bundle.graph(session.variant, GraphRole.ENCODER)
        self._vocabulary = vocabulary_size(manifest)
        self._empty = empty_detokenizer(manifest.vocabulary, session.tokenizers)
        self._begin = 0  # samples before the part
        self._signal: Floats = np.zeros(0, np.float32)  # of the part
        self._decoded = 0  # samples of the part that the decoding before has heard
        self._firm: tuple[int, ...] = ()
        self._previous: tuple[int, ...] = ()  # what the decoding before made
        self._text: IncrementalDetokenizer = self._empty
        self._written = ""

    def run(self, blocks: Iterable[Floats]) -> Iterator[LiveText]:
        """Decodes after each block of samples; yields text as it becomes firm.

        Args:
            blocks: samples in their order, (samples,) float32 within -1..1, at the model's rate;
                a block of about a second gives the text within about two.

        Raises:
            InputError: samples are no numbers.
            BackendError: the backend failed.
        """
        for block in blocks:
            for begin in range(0, len(block), self._largest_block):
                yield from self.feed(block[begin : begin + self._largest_block])
        yield from self.finish()

    def feed(self, block: Floats) -> Iterator[LiveText]:
        """Appends samples, decodes all of the part, and yields what has become firm."""
        if not np.isfinite(block).all():
            raise InputError("the sound holds NaN or infinity; look at the form of its samples")
        self._signal = np.concatenate([self._signal, block])
        if len(self._signal) < _SHORTEST_S * self.rate:
            return
        if len(self._signal) >= self._part_s * self.rate:
            yield self._end_part(self._quiet_point())
            return
        newest = self._decode(self._signal)
        self._decoded = len(self._signal)
        if newest is None:
            return
        agreed = _common(newest, self._previous)
        self._previous = newest
        if (text := self._commit(newest[:agreed])) != "":
            yield LiveText(text)

    def finish(self) -> Iterator[LiveText]:
        """Ends the last part: all of its text is firm then."""
        if len(self._signal):
            yield self._end_part(len(self._signal))

    @property
    def _largest_block(self) -> int:
        """The number of samples that always fit into the window behind those of a part."""
        return max(1, self._window - int(self._part_s * self.rate))

    def _begin_part(self, begin: int, signal: Floats) -> None:
        self._begin, self._signal, self._decoded = begin, signal, 0
        self._firm, self._previous = (), ()
        self._text, self._written = self._empty, ""

    def _quiet_point(self) -> int:
        """Returns where the part ends: at a quiet point that no firm text can lie behind.

        Firm text was heard by the decoding before. The rest is half a part at most, so that the
        next block fits into the window too.
        """
        length = len(self._signal)
        first = max(self._decoded, length - int(self._part_s * self.rate) // 2)
        first = min(first, length - int(_SHORTEST_S * self.rate))
        return first + quietest(self._signal[first:], self.rate)

    def _end_part(self, end: int) -> LiveText:
        """Ends the part after `end` samples; the rest begins the next one."""
        heard, rest = self._signal[:end], self._signal[end:]
        newest = self._decode(heard) if len(heard) >= _SHORTEST_S * self.rate else None
        text = self._commit(self._firm if newest is None else newest)
        tail = self._text.full_text[len(self._written) :]
        whole = (self._written + tail).strip()
        span = Span(self._begin / self.rate, (self._begin + end) / self.rate)
        self._begin_part(self._begin + end, rest)
        return LiveText(text + tail, span, whole)

    def _decode(self, signal: Floats) -> tuple[int, ...] | None:
        """Returns the tokens of a part, which begin with the firm ones.

        None if nobody speaks, or if the text repeats itself as that of noise does.
        """
        options = self._options
        if self._firm:  # the text may end here, and need not begin
            options = replace(options, begin_suppressed=())
        inputs = batch_audio([signal], self._spec)
        inputs = with_mask_types(inputs, mask_names(self._spec), self._encoder)
        with self._session.encode(inputs) as encoded:
            window = decode_window(self._session, encoded, self._firm, options, self._rules)
        tokens = window.result.tokens
        if (window.silent and not self._firm) or not tokens:
            return None
        if compression_ratio(tokens, self._vocabulary) > FallbackRules.compression_ratio:
            return None
        ends = self._session.bundle.manifest.generation.end_tokens
        return self._firm + tuple(token for token in tokens if token not in ends)

    def _commit(self, tokens: Sequence[int]) -> str:
        """Makes tokens firm; returns the text that they append."""
        for token in tokens[len(self._firm) :]:
            self._text = self._text.after(token)
        self._firm = max(self._firm, tuple(tokens), key=len)
        text = self._text.text[len(self._written) :]
        self._written = self._text.text
        return text


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns the number of tokens at the beginning that are equal."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))

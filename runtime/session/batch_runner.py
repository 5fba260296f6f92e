"""Runs one batch from the encoder inputs to the results: encodes, decodes, makes text."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from numpy.typing import NDArray

from hybrid_deploy.argument_checks import token_ids_of
from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.backends.protocol import Backend, Decoding, HasNotes, KeepsMemory
from hybrid_deploy.runtime.deadline import StoppedError, Until
from hybrid_deploy.runtime.generation.beam_search import BeamSearch
from hybrid_deploy.runtime.generation.incremental_text import (
    IncrementalDetokenizer,
    empty_detokenizer,
)
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.generation.sequences import BatchResult, Cancellation, SequenceResult
from hybrid_deploy.runtime.generation.settings import (
    DecodingSettings,
    check_default_tokens,
    resolve_settings,
)
from hybrid_deploy.runtime.generation.token_loop import TokenLoop
from hybrid_deploy.runtime.session.encoded_input import EncodedInput
from hybrid_deploy.runtime.session.input_checks import check_values
from hybrid_deploy.runtime.session.results import GenerationResult, Timings
from hybrid_deploy.runtime.session.runnable import TokenTexts, check_runnable
from hybrid_deploy.runtime.session.start_tokens import PromptMaker, detects_language
from hybrid_deploy.runtime.session.stopped_decoding import StoppedDecoding
from hybrid_deploy.runtime.session.streaming import Stream
from hybrid_deploy.runtime.tokenizer import BundleTokenizers, text_of

BatchInputs: TypeAlias = "Mapping[str, NDArray[Any]] | EncodedInput"
"""Encoder inputs of a batch by name, or a batch that is encoded already."""


@dataclass(frozen=True)
class Request:
    """How to generate for one batch.

    Attributes:
        prompt: ids of tokens to continue after the start tokens, which it may begin with.
        options: options of the generation; None takes the bundle's defaults.
        cancel: event that ends the generation before the next token once it is set.
    """

    prompt: Sequence[int] = ()
    options: GenerateOptions | None = None
    cancel: threading.Event | None = None

    def cancellation(self, start: float) -> Cancellation | None:
        """Returns the event and the deadline that end the generation early; None without both.

        Args:
            start: value of `time.perf_counter` in seconds from which the timeout counts.
        """
        deadline = self.deadline(start)
        if deadline is None and self.cancel is None:
            return None
        return Cancellation(self.cancel, deadline)

    def is_cancelled(self) -> bool:
        """Returns whether no other batch may start."""
        return self.cancel is not None and self.cancel.is_set()

    def deadline(self, start: float) -> float | None:
        """Returns when the generation must end; None without a timeout.

        Args:
            start: value of `time.perf_counter` in seconds from which the timeout counts.
        """
        timeout_s = None if self.options is None else self.options.timeout_s
        return None if timeout_s is None else start + timeout_s


class BatchRunner:
    """Runs batches of encoder inputs; a batch leaves no state behind.

    Args:
        bundle: the bundle.
        variant: name of the variant.
        backend: backend that runs the variant's graphs.
        tokenizers: tokenizers of the bundle.
    """

    def __init__(
        self, bundle: Bundle, variant: str, backend: Backend, tokenizers: BundleTokenizers
    ) -> None:
        self._bundle = bundle
        self._variant = variant
        self._backend = backend
        check_default_tokens(bundle.manifest, str(bundle.folder))
        self._default_settings = resolve_settings(bundle.manifest, tokenizers, GenerateOptions())
        self._tokenizers = tokenizers
        self._token_texts = TokenTexts.of(bundle, tokenizers)
        check_runnable(bundle, variant, self._token_texts)
        self._encoder = bundle.graph(variant, GraphRole.ENCODER)
        self._prompts = PromptMaker(bundle, variant, tokenizers)

    def run(
        self, inputs: BatchInputs, request: Request, start: float
    ) -> tuple[list[GenerationResult], Timings]:
        """Encodes and decodes a batch; returns its results and times.

        Args:
            inputs: encoder inputs by name, batch first; or a batch that is encoded already.
            request: how to generate.
            start: value of `time.perf_counter` in seconds when preprocessing started.
        """
        encoder_start = time.perf_counter()
        settings = self._settings_for(request.options)
        loop, languages = self._start(inputs, request, settings, start)
        times = (encoder_start - start, time.perf_counter() - encoder_start)
        return self._results(loop.run(), languages, *times)

    def stream(self, inputs: BatchInputs, request: Request, start: float) -> Stream:
        """Encodes a batch; returns the stream that decodes its tokens when they are read.

        Args:
            inputs: encoder inputs by name, batch first; or a batch that is encoded already.
            request: how to generate.
            start: value of `time.perf_counter` in seconds when preprocessing started.

        Raises:
            UsageError: a beam search is asked for; its tokens are only known at the end.
        """
        encoder_start = time.perf_counter()
        settings = self._settings_for(request.options)
        if settings.beams is not None:
            raise UsageError(
                "the tokens of a beam search are known at its end; ask for beams=1 to stream them"
            )
        loop, languages = self._start(inputs, request, settings, start)
        assert isinstance(loop, TokenLoop)
        times = (encoder_start - start, time.perf_counter() - encoder_start)
        return Stream(
            loop,
            self._detokenizer(),
            settings.stop,
            lambda batch_result: self._results(batch_result, languages, *times),
        )

    def encode(self, inputs: Mapping[str, NDArray[Any]], start: float) -> EncodedInput:
        """Encodes a batch and keeps its memory.

        Args:
            inputs: encoder inputs by name, batch first.
            start: value of `time.perf_counter` in seconds when preprocessing started.

        Raises:
            UsageError: the backend decodes a batch only once.
        """
        if not isinstance(self._backend, KeepsMemory):
            raise UsageError(
                f"the backend {self._backend.name} decodes an encoded input only once; run it with "
                "run_arrays or run_files"
            )
        check_values(inputs, self._encoder, self._bundle.manifest.dims)
        encoder_start = time.perf_counter()
        memory = self._backend.encode(inputs)
        encoder_s = time.perf_counter() - encoder_start
        return EncodedInput(self._backend, memory, (encoder_start - start) * 1e3, encoder_s * 1e3)

    def _start(
        self,
        inputs: BatchInputs,
        request: Request,
        settings: DecodingSettings,
        start: float,
    ) -> tuple[TokenLoop | BeamSearch, tuple[str, ...]]:
        """Encodes a batch, unless it is encoded already.

        Returns the loop that decodes it, and the languages that were detected, () for none.
        """
        options, deadline = request.options, request.deadline(start)
        with Until(deadline):
            given = token_ids_of("the prompt", request.prompt)
            prompt = self._prompts.prompt(given, options)
        cancellation = request.cancellation(start)
        decoding, languages = self._decoding(inputs, options, deadline)
        prompts = [prompt] * decoding.batch
        if languages:
            assert options is not None
            prompts = self._prompts.prompts_in(languages, given, options)
        loop = TokenLoop if settings.beams is None else BeamSearch
        return loop(decoding, prompts, settings, cancellation), languages

    def _decoding(
        self, inputs: BatchInputs, options: GenerateOptions | None, deadline: float | None
    ) -> tuple[Decoding, tuple[str, ...]]:
        """Returns the encoded batch before its first token, and the languages, if asked for."""
        try:
            with Until(deadline):
                if not detects_language(options):
                    return self._encoded(inputs), ()
                if not isinstance(inputs, EncodedInput):
                    inputs = self.encode(inputs, time.perf_counter())
                languages = self._prompts.detected_languages(inputs.start(self._backend))
                return inputs.start(self._backend), languages
        except StoppedError:
            return StoppedDecoding(_batch_of(inputs)), ()

    def _encoded(self, inputs: BatchInputs) -> Decoding:
        if isinstance(inputs, EncodedInput):
            return inputs.start(self._backend)
        check_values(inputs, self._encoder, self._bundle.manifest.dims)
        return self._backend.start(inputs)

    def _settings_for(self, options: GenerateOptions | None) -> DecodingSettings:
        if options is None:
            return self._default_settings
        return resolve_settings(self._bundle.manifest, self._tokenizers, options)

    def _results(
        self,
        batch_result: BatchResult,
        languages: tuple[str, ...],
        preprocess_s: float,
        encoder_s: float,
    ) -> tuple[list[GenerationResult], Timings]:
        tokens = tuple(token for row in batch_result.sequences for token in row.tokens)
        timings = Timings(
            preprocess_ms=preprocess_s * 1e3,
            encoder_ms=encoder_s * 1e3,
            first_token_ms=batch_result.first_ms,
            step_ms=batch_result.step_ms,
            notes=batch_result.notes + self._backend_notes() + self._token_texts.missing(tokens),
        )
        results = [self._result(sequence) for sequence in batch_result.sequences]
        if languages:
            pairs = zip(results, languages, strict=True)
            results = [replace(result, language=language) for result, language in pairs]
        return results, timings

    def _backend_notes(self) -> tuple[str, ...]:
        return self._backend.notes if isinstance(self._backend, HasNotes) else ()

    def _result(self, sequence: SequenceResult) -> GenerationResult:
        return GenerationResult(
            text=self._text(sequence.tokens) if sequence.text is None else sequence.text,
            tokens=sequence.tokens,
            scores=sequence.scores,
            finish=sequence.finish,
            sequence_score=sequence.sequence_score,
            alternatives=tuple(self._result(other) for other in sequence.alternatives),
        )

    def _detokenizer(self) -> IncrementalDetokenizer | None:
        vocabulary = self._bundle.manifest.vocabulary
        return None if vocabulary is None else empty_detokenizer(vocabulary, self._tokenizers)

    def _text(self, tokens: Sequence[int]) -> str | None:
        vocabulary = self._bundle.manifest.vocabulary
        return None if vocabulary is None else text_of(tokens, vocabulary, self._tokenizers)


def _batch_of(inputs: BatchInputs) -> int:
    return inputs.batch if isinstance(inputs, EncodedInput) else len(next(iter(inputs.values())))

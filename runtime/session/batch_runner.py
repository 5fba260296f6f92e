"""One batch from encoder inputs to results: encoded, decoded, read as text."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import LOGITS, GraphRole
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.backends.protocol import Backend
from hybrid_deploy.runtime.generation.beam_search import BeamSearch
from hybrid_deploy.runtime.generation.incremental_text import IncrementalDetokenizer, begin_reading
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.generation.sequences import BatchResult, Cancellation, SequenceResult
from hybrid_deploy.runtime.generation.settings import DecodingSettings, resolve_settings
from hybrid_deploy.runtime.generation.token_loop import TokenLoop
from hybrid_deploy.runtime.session.input_checks import check_values
from hybrid_deploy.runtime.session.results import GenerationResult, Timings
from hybrid_deploy.runtime.session.streaming import Stream
from hybrid_deploy.runtime.tokenizer import text_of


@dataclass(frozen=True)
class Request:
    """What is asked of one batch.

    Attributes:
        prompt: tokens that every sequence continues, after the start tokens.
        options: how to generate; None does as the bundle says.
        cancel: ends the generation between two tokens once it is set.
    """

    prompt: Sequence[int] = ()
    options: GenerateOptions | None = None
    cancel: threading.Event | None = None

    def control(self, began: float) -> Cancellation | None:
        """Returns what ends the generation from outside; `began` is when the timeout starts."""
        timeout_s = None if self.options is None else self.options.timeout_s
        if timeout_s is None and self.cancel is None:
            return None
        return Cancellation(self.cancel, None if timeout_s is None else began + timeout_s)


class Runner:
    """Runs batches of encoder inputs; it keeps nothing of one for the next."""

    def __init__(self, bundle: Bundle, variant: str, backend: Backend) -> None:
        self._bundle = bundle
        self._variant = variant
        self._backend = backend
        self._rules = resolve_settings(bundle.manifest, bundle.folder, GenerateOptions())
        self._encoder = bundle.graph(variant, GraphRole.ENCODER)

    def run(
        self, inputs: Mapping[str, NDArray[Any]], request: Request, began: float
    ) -> tuple[list[GenerationResult], Timings]:
        """Runs a batch to its end; `began` is when its preprocessing did."""
        begin = time.perf_counter()
        loop = self._start(inputs, request, self._rules_of(request.options), began)
        encoded = time.perf_counter()
        return self._outcome(loop.run(), begin - began, encoded - begin)

    def stream(self, inputs: Mapping[str, NDArray[Any]], request: Request, began: float) -> Stream:
        """Encodes a batch and gives its tokens as they are made.

        Raises:
            UsageError: there are beams, whose tokens are only known at the end.
        """
        begin = time.perf_counter()
        rules = self._rules_of(request.options)
        if rules.beams is not None:
            raise UsageError(
                "the tokens of a beam search are known at its end; ask for beams=1 to see them come"
            )
        loop = self._start(inputs, request, rules, began)
        assert isinstance(loop, TokenLoop)
        times = (begin - began, time.perf_counter() - begin)
        return Stream(
            loop, self._reading(), rules.stop, lambda decodes: self._outcome(decodes, *times)
        )

    def _start(
        self,
        inputs: Mapping[str, NDArray[Any]],
        request: Request,
        rules: DecodingSettings,
        began: float,
    ) -> TokenLoop | BeamSearch:
        """Encodes a batch and makes ready to decode it."""
        beginning = self._beginning(request.prompt)
        check_values(inputs, self._encoder, self._bundle.manifest.dims)
        decoding = self._backend.start(inputs)
        kind = TokenLoop if rules.beams is None else BeamSearch
        return kind(decoding, [beginning] * decoding.batch, rules, request.control(began))

    def _rules_of(self, options: GenerateOptions | None) -> DecodingSettings:
        if options is None:
            return self._rules
        return resolve_settings(self._bundle.manifest, self._bundle.folder, options)

    def _outcome(
        self, decodes: BatchResult, preprocess_s: float, encoder_s: float
    ) -> tuple[list[GenerationResult], Timings]:
        timings = Timings(
            preprocess_ms=preprocess_s * 1e3,
            encoder_ms=encoder_s * 1e3,
            first_token_ms=decodes.first_ms,
            step_ms=decodes.step_ms,
            notes=decodes.notes,
        )
        return [self._result(each) for each in decodes.sequences], timings

    def _result(self, decoded: SequenceResult) -> GenerationResult:
        return GenerationResult(
            text=self._text(decoded.tokens) if decoded.text is None else decoded.text,
            tokens=decoded.tokens,
            scores=decoded.scores,
            finish=decoded.finish,
            sequence_score=decoded.sequence_score,
            alternatives=tuple(self._result(other) for other in decoded.alternatives),
        )

    def _reading(self) -> IncrementalDetokenizer | None:
        vocabulary = self._bundle.manifest.vocabulary
        return None if vocabulary is None else begin_reading(vocabulary, self._bundle.folder)

    def _text(self, tokens: Sequence[int]) -> str | None:
        vocabulary = self._bundle.manifest.vocabulary
        return None if vocabulary is None else text_of(tokens, vocabulary, self._bundle.folder)

    def _beginning(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """Returns the start tokens and the prompt, which may begin with the start tokens itself."""
        start = self._bundle.manifest.generation.start_tokens
        if not prompt:
            if not start:
                raise UsageError(
                    f"{self._bundle.folder} has no start tokens; give a prompt to continue, as "
                    "--prompt 1,5, or export it with --start"
                )
            return start
        graph = self._bundle.graph(self._variant, GraphRole.STEP)
        size = next((t.shape[-1] for t in graph.outputs if t.name == LOGITS), None)
        for token in prompt:
            if token < 0:
                raise UsageError(f"the prompt has token {token}; token ids begin at 0")
            if isinstance(size, int) and token >= size:
                raise UsageError(f"the prompt has token {token}, the model's last is {size - 1}")
        given = tuple(prompt)
        return given if given[: len(start)] == start else start + given

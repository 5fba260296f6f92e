"""A loaded bundle: files or arrays in, text out."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hybrid_deploy.bundle import Bundle, open_bundle
from hybrid_deploy.contract import LOGITS, GraphRole
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.backend import DEFAULT_BACKEND, Backend, Options, load_backend
from hybrid_deploy.runtime.beam import BeamSearch
from hybrid_deploy.runtime.generate import TokenLoop
from hybrid_deploy.runtime.generate_options import GenerateOptions
from hybrid_deploy.runtime.preprocess import prepare
from hybrid_deploy.runtime.results import Result as Result
from hybrid_deploy.runtime.results import Timings as Timings
from hybrid_deploy.runtime.rules import Rules, rules_of
from hybrid_deploy.runtime.running_text import Reading, begin_reading
from hybrid_deploy.runtime.sequences import Control, Decoded, Decodes
from hybrid_deploy.runtime.streaming import OnToken, Stream
from hybrid_deploy.runtime.text import text_of, tokens_of

DEFAULT_VARIANT = "fp32"


class Session:
    """One variant of a bundle, loaded into a backend.

    Any number of threads may use it at a time.
    """

    def __init__(self, bundle: Bundle, variant: str, backend: Backend) -> None:
        self.bundle = bundle
        self.variant = variant
        self.backend = backend
        self._rules = rules_of(bundle.manifest, bundle.folder, GenerateOptions())

    def run_files(
        self,
        paths: Sequence[Path],
        *,
        texts: Sequence[str] | None = None,
        prompt: Sequence[int] = (),
        options: GenerateOptions | None = None,
        on_token: OnToken | None = None,
        cancel: threading.Event | None = None,
    ) -> tuple[list[Result], Timings]:
        """Runs one batch of files.

        Args:
            paths: a file for each sequence; none for a model that takes only text.
            texts: a text for each sequence, if the encoder takes one.
            prompt: tokens that every sequence continues, after the start tokens.
            options: how to generate; None does as the bundle says.
            on_token: is told every token as it is made.
            cancel: ends the generation between two tokens once it is set.

        Raises:
            InputError: a file or text cannot be used.
            UsageError: the prompt has a token that the model does not know, or the options ask for
                what this bundle or backend cannot do.
            BackendError: the backend failed, or its logits are not finite.
        """
        began = time.perf_counter()
        preprocess = self.bundle.manifest.preprocess
        inputs = prepare(paths, preprocess, folder=self.bundle.folder, texts=texts)
        return self._run(inputs, prompt, options, on_token, cancel, began)

    def run_arrays(
        self,
        inputs: Mapping[str, NDArray[Any]],
        *,
        prompt: Sequence[int] = (),
        options: GenerateOptions | None = None,
        on_token: OnToken | None = None,
        cancel: threading.Event | None = None,
    ) -> tuple[list[Result], Timings]:
        """Runs one batch of encoder inputs, by name, batch first; else as `run_files`.

        Raises:
            InputError: an array has another name, type or shape than the encoder takes.
            UsageError: as `run_files`.
            BackendError: the backend failed, or its logits are not finite.
        """
        return self._run(inputs, prompt, options, on_token, cancel, time.perf_counter())

    def stream(
        self,
        inputs: Sequence[Path] | Mapping[str, NDArray[Any]],
        *,
        texts: Sequence[str] | None = None,
        prompt: Sequence[int] = (),
        options: GenerateOptions | None = None,
        cancel: threading.Event | None = None,
    ) -> Stream:
        """Gives the tokens of one batch as they are made; the encoder has run before it returns.

        Args:
            inputs: files, or arrays by name.
            texts: a text for each sequence, if the encoder takes one and files are given.
            prompt: tokens that every sequence continues, after the start tokens.
            options: how to generate; None does as the bundle says.
            cancel: ends the generation between two tokens once it is set.

        Raises:
            InputError: as `run_files` and `run_arrays`.
            UsageError: as `run_files`; or there are beams, whose tokens are only known at the end.
            BackendError: the backend failed; later, when a token is asked for, too.
        """
        began = time.perf_counter()
        if not isinstance(inputs, Mapping):
            preprocess, folder = self.bundle.manifest.preprocess, self.bundle.folder
            inputs = prepare(inputs, preprocess, folder=folder, texts=texts)
        return self._stream(inputs, prompt, options, cancel, began)

    def prompt_tokens(self, text: str) -> list[int]:
        """Gives the tokens of a prompt.

        Raises:
            UsageError: the bundle has no tokenizer.
        """
        return tokens_of(text, self.bundle.manifest.vocabulary, self.bundle.folder)

    def _run(
        self,
        inputs: Mapping[str, NDArray[Any]],
        prompt: Sequence[int],
        options: GenerateOptions | None,
        on_token: OnToken | None,
        cancel: threading.Event | None,
        began: float,
    ) -> tuple[list[Result], Timings]:
        if on_token is not None:
            with self._stream(inputs, prompt, options, cancel, began) as stream:
                for event in stream:
                    on_token(event)
            return stream.results, stream.timings
        begin = time.perf_counter()
        control = _control(options, cancel, began)
        loop = self._start(inputs, prompt, self._rules_of(options), control)
        encoded = time.perf_counter()
        decodes = loop.run()
        return self._outcome(decodes, begin - began, encoded - begin)

    def _stream(
        self,
        inputs: Mapping[str, NDArray[Any]],
        prompt: Sequence[int],
        options: GenerateOptions | None,
        cancel: threading.Event | None,
        began: float,
    ) -> Stream:
        begin = time.perf_counter()
        rules = self._rules_of(options)
        if rules.beams is not None:
            raise UsageError(
                "the tokens of a beam search are known at its end; ask for beams=1 to see them come"
            )
        control = _control(options, cancel, began)
        loop = self._start(inputs, prompt, rules, control)
        assert isinstance(loop, TokenLoop)
        times = (begin - began, time.perf_counter() - begin)
        return Stream(
            loop, self._reading(), rules.stop, lambda decodes: self._outcome(decodes, *times)
        )

    def _start(
        self,
        inputs: Mapping[str, NDArray[Any]],
        prompt: Sequence[int],
        rules: Rules,
        control: Control | None,
    ) -> TokenLoop | BeamSearch:
        """Encodes a batch and makes ready to decode it."""
        beginning = self._beginning(prompt)
        decoding = self.backend.start(inputs)
        kind = TokenLoop if rules.beams is None else BeamSearch
        return kind(decoding, [beginning] * decoding.batch, rules, control)

    def _rules_of(self, options: GenerateOptions | None) -> Rules:
        if options is None:
            return self._rules
        return rules_of(self.bundle.manifest, self.bundle.folder, options)

    def _outcome(
        self, decodes: Decodes, preprocess_s: float, encoder_s: float
    ) -> tuple[list[Result], Timings]:
        timings = Timings(
            preprocess_ms=preprocess_s * 1e3,
            encoder_ms=encoder_s * 1e3,
            first_token_ms=decodes.first_ms,
            step_ms=decodes.step_ms,
            notes=decodes.notes,
        )
        return [self._result(each) for each in decodes.sequences], timings

    def _result(self, decoded: Decoded) -> Result:
        return Result(
            text=self._text(decoded.tokens) if decoded.text is None else decoded.text,
            tokens=decoded.tokens,
            scores=decoded.scores,
            finish=decoded.finish,
            total=decoded.total,
            others=tuple(self._result(other) for other in decoded.others),
        )

    def _reading(self) -> Reading | None:
        vocabulary = self.bundle.manifest.vocabulary
        return None if vocabulary is None else begin_reading(vocabulary, self.bundle.folder)

    def _text(self, tokens: Sequence[int]) -> str | None:
        vocabulary = self.bundle.manifest.vocabulary
        return None if vocabulary is None else text_of(tokens, vocabulary, self.bundle.folder)

    def _beginning(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """Gives the start tokens and the prompt, which may begin with the start tokens itself."""
        start = self.bundle.manifest.generation.start_tokens
        if not prompt:
            if not start:
                raise UsageError(
                    f"{self.bundle.folder} has no start tokens; give a prompt to continue, as "
                    "--prompt 1,5, or export it with --start"
                )
            return start
        graph = self.bundle.graph(self.variant, GraphRole.STEP)
        size = next((t.shape[-1] for t in graph.outputs if t.name == LOGITS), None)
        for token in prompt:
            if token < 0:
                raise UsageError(f"the prompt has token {token}; token ids begin at 0")
            if isinstance(size, int) and token >= size:
                raise UsageError(f"the prompt has token {token}, the model's last is {size - 1}")
        given = tuple(prompt)
        return given if given[: len(start)] == start else start + given


def _control(
    options: GenerateOptions | None, cancel: threading.Event | None, began: float
) -> Control | None:
    timeout_s = None if options is None else options.timeout_s
    if timeout_s is None and cancel is None:
        return None
    return Control(cancel, None if timeout_s is None else began + timeout_s)


def load_session(
    path: str | Path,
    *,
    variant: str = DEFAULT_VARIANT,
    backend: str = DEFAULT_BACKEND,
    threads: int | None = None,
) -> Session:
    """Opens a bundle and loads one of its variants.

    Args:
        path: the bundle's folder.
        variant: name of the variant.
        backend: name of the backend.
        threads: CPU threads within an operator; None leaves it to the backend.

    Raises:
        InputError: there is no such bundle or variant.
        BundleError: the bundle is damaged.
        MissingDependencyError: the backend's library is not installed.
    """
    bundle = open_bundle(Path(path))
    return Session(bundle, variant, load_backend(backend, bundle, variant, Options(threads)))

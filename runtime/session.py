"""A loaded bundle: files or arrays in, text out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hybrid_deploy.bundle import Bundle, open_bundle
from hybrid_deploy.contract import LOGITS, GraphRole
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.backend import DEFAULT_BACKEND, Backend, Options, load_backend
from hybrid_deploy.runtime.generate import Finish, decode_greedily, limits_of
from hybrid_deploy.runtime.preprocess import prepare
from hybrid_deploy.runtime.processors import processors_of
from hybrid_deploy.runtime.text import text_of, tokens_of

DEFAULT_VARIANT = "fp32"


@dataclass(frozen=True)
class Result:
    """What was made of one input.

    Attributes:
        text: the tokens as text; None if the bundle has no vocabulary.
        tokens: the new tokens, the end token included.
        scores: natural logarithm of each token's probability, after the processors.
        finish: `end` after the end token, `length` when the limit was reached.
    """

    text: str | None
    tokens: tuple[int, ...]
    scores: tuple[float, ...]
    finish: Finish


@dataclass(frozen=True)
class Timings:
    """How long the stages of one batch took, in milliseconds.

    Attributes:
        first_token_ms: from the end of the encoder to the first token.
        step_ms: of every later token.
    """

    preprocess_ms: float
    encoder_ms: float
    first_token_ms: float
    step_ms: tuple[float, ...]

    @property
    def total_ms(self) -> float:
        """From the files to the last token."""
        return self.preprocess_ms + self.encoder_ms + self.first_token_ms + sum(self.step_ms)


class Session:
    """One variant of a bundle, loaded into a backend."""

    def __init__(self, bundle: Bundle, variant: str, backend: Backend) -> None:
        self.bundle = bundle
        self.variant = variant
        self.backend = backend
        self._limits = limits_of(bundle.manifest)
        self._processors = processors_of(bundle.manifest.generation)

    def run_files(
        self,
        paths: Sequence[Path],
        *,
        texts: Sequence[str] | None = None,
        prompt: Sequence[int] = (),
    ) -> tuple[list[Result], Timings]:
        """Runs one batch of files.

        Args:
            paths: a file for each sequence; none for a model that takes only text.
            texts: a text for each sequence, if the encoder takes one.
            prompt: tokens that every sequence continues, after the start tokens.

        Raises:
            InputError: a file or text cannot be used.
            UsageError: the prompt has a token that the model does not know.
            BackendError: the backend failed.
        """
        began = time.perf_counter()
        preprocess = self.bundle.manifest.preprocess
        inputs = prepare(paths, preprocess, folder=self.bundle.folder, texts=texts)
        return self._run(inputs, prompt, preprocess_ms=(time.perf_counter() - began) * 1e3)

    def run_arrays(
        self, inputs: Mapping[str, NDArray[Any]], *, prompt: Sequence[int] = ()
    ) -> tuple[list[Result], Timings]:
        """Runs one batch of encoder inputs, by name, batch first.

        Raises:
            InputError: an array has another name, type or shape than the encoder takes.
            UsageError: the prompt has a token that the model does not know.
            BackendError: the backend failed.
        """
        return self._run(inputs, prompt, preprocess_ms=0.0)

    def prompt_tokens(self, text: str) -> list[int]:
        """Gives the tokens of a prompt.

        Raises:
            UsageError: the bundle has no tokenizer.
        """
        return tokens_of(text, self.bundle.manifest.vocabulary, self.bundle.folder)

    def _run(
        self, inputs: Mapping[str, NDArray[Any]], prompt: Sequence[int], preprocess_ms: float
    ) -> tuple[list[Result], Timings]:
        beginning = self._beginning(prompt)
        began = time.perf_counter()
        decoding = self.backend.start(inputs)
        encoder_ms = (time.perf_counter() - began) * 1e3
        prompts = [beginning] * decoding.batch
        decodes = decode_greedily(decoding, prompts, self._limits, self._processors)
        results = [
            Result(self._text(row.tokens), row.tokens, row.scores, row.finish)
            for row in decodes.sequences
        ]
        return results, Timings(preprocess_ms, encoder_ms, decodes.first_ms, decodes.step_ms)

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

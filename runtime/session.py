"""A loaded bundle: files or arrays in, text out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hybrid_deploy.bundle import Bundle, open_bundle
from hybrid_deploy.runtime.backend import DEFAULT_BACKEND, Backend, Options, load_backend
from hybrid_deploy.runtime.generate import Finish, decode_greedily, limits_of
from hybrid_deploy.runtime.preprocess import prepare
from hybrid_deploy.runtime.text import text_of

DEFAULT_VARIANT = "fp32"


@dataclass(frozen=True)
class Result:
    """What was made of one input.

    Attributes:
        text: the tokens as text; None if the bundle has no vocabulary.
        tokens: the new tokens, the end token included.
        scores: natural logarithm of each token's probability.
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

    def run_files(self, paths: Sequence[Path]) -> tuple[list[Result], Timings]:
        """Runs one batch of files.

        Raises:
            InputError: a file cannot be used.
            BackendError: the backend failed.
        """
        began = time.perf_counter()
        inputs = prepare(paths, self.bundle.manifest.preprocess)
        return self._run(inputs, preprocess_ms=(time.perf_counter() - began) * 1e3)

    def run_arrays(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[list[Result], Timings]:
        """Runs one batch of encoder inputs, by name, batch first.

        Raises:
            InputError: an array has another name, type or shape than the encoder takes.
            BackendError: the backend failed.
        """
        return self._run(inputs, preprocess_ms=0.0)

    def _run(
        self, inputs: Mapping[str, NDArray[Any]], preprocess_ms: float
    ) -> tuple[list[Result], Timings]:
        began = time.perf_counter()
        decoding = self.backend.start(inputs)
        encoder_ms = (time.perf_counter() - began) * 1e3
        prompt = self.bundle.manifest.generation.start_tokens
        decodes = decode_greedily(decoding, [prompt] * decoding.batch, self._limits)
        results = [
            Result(self._text(row.tokens), row.tokens, row.scores, row.finish)
            for row in decodes.sequences
        ]
        return results, Timings(preprocess_ms, encoder_ms, decodes.first_ms, decodes.step_ms)

    def _text(self, tokens: Sequence[int]) -> str | None:
        vocabulary = self.bundle.manifest.vocabulary
        return None if vocabulary is None else text_of(tokens, vocabulary)


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

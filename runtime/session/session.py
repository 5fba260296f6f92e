"""A loaded bundle: files or arrays in, text out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.input_specs import AudioInput
from hybrid_deploy.contract import FLOAT_VARIANT, GraphRole
from hybrid_deploy.errors import InputError, UsageError
from hybrid_deploy.runtime.backends.protocol import Backend
from hybrid_deploy.runtime.backends.registry import (
    DEFAULT_BACKEND,
    BackendOptions,
    load_backend,
)
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.preprocess.audio import batch_audio, load_audio
from hybrid_deploy.runtime.preprocess.audio_windows import Window, longest_s, windows
from hybrid_deploy.runtime.preprocess.prepare import batch_arrays, mask_names, prepare
from hybrid_deploy.runtime.session.batch_runner import Request, Runner
from hybrid_deploy.runtime.session.input_checks import with_mask_types
from hybrid_deploy.runtime.session.prefetch import Arrays, Item, Outcome, Prefetcher
from hybrid_deploy.runtime.session.results import GenerationResult as GenerationResult
from hybrid_deploy.runtime.session.results import Timings as Timings
from hybrid_deploy.runtime.session.streaming import OnToken, Stream
from hybrid_deploy.runtime.tokenizer import tokens_of

_AHEAD = 2


class Session:
    """One variant of a bundle, loaded into a backend.

    Any number of threads may use it at a time.
    """

    def __init__(self, bundle: Bundle, variant: str, backend: Backend) -> None:
        self.bundle = bundle
        self.variant = variant
        self.backend = backend
        self._runner = Runner(bundle, variant, backend)

    def run_files(
        self,
        paths: Sequence[Path],
        *,
        texts: Sequence[str] | None = None,
        prompt: Sequence[int] = (),
        options: GenerateOptions | None = None,
        on_token: OnToken | None = None,
        cancel: threading.Event | None = None,
    ) -> tuple[list[GenerationResult], Timings]:
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
        inputs = self.prepare(paths, texts=texts)
        return self._run(inputs, Request(prompt, options, cancel), on_token, began)

    def run_arrays(
        self,
        inputs: Mapping[str, NDArray[Any]],
        *,
        prompt: Sequence[int] = (),
        options: GenerateOptions | None = None,
        on_token: OnToken | None = None,
        cancel: threading.Event | None = None,
    ) -> tuple[list[GenerationResult], Timings]:
        """Runs one batch of encoder inputs, by name, batch first; else as `run_files`.

        Raises:
            InputError: an array has another name, type or shape than the encoder takes.
            UsageError: as `run_files`.
            BackendError: the backend failed, or its logits are not finite.
        """
        request = Request(prompt, options, cancel)
        return self._run(inputs, request, on_token, time.perf_counter())

    def stream(
        self,
        inputs: Sequence[Path] | Mapping[str, NDArray[Any]],
        *,
        texts: Sequence[str] | None = None,
        prompt: Sequence[int] = (),
        options: GenerateOptions | None = None,
        cancel: threading.Event | None = None,
    ) -> Stream:
        """Returns the tokens of one batch as they are made; the encoder has run before it returns.

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
            inputs = self.prepare(inputs, texts=texts)
        return self._runner.stream(inputs, Request(prompt, options, cancel), began)

    def run_many(
        self,
        items: Iterable[Path | Arrays],
        *,
        prompt: Sequence[int] = (),
        options: GenerateOptions | None = None,
        cancel: threading.Event | None = None,
        batch: int = 1,
        ahead: int = _AHEAD,
    ) -> Iterator[Outcome[Path | Arrays]]:
        """Runs any number of inputs; while some are decoded, a thread prepares the next ones.

        The outcomes come in the order of the inputs. What fails is told in its outcome and does
        not touch the others.

        Args:
            items: files, or encoder inputs by name, a batch of one each; asked for as needed.
            prompt: tokens that every sequence continues, after the start tokens.
            options: how to generate; None does as the bundle says. `timeout_s` counts for a batch.
            cancel: ends what is decoded between two tokens, and begins no more, once it is set.
            batch: how many inputs are decoded together.
            ahead: how many batches are prepared before they are needed.

        Raises:
            UsageError: `batch` or `ahead` is not positive.
        """
        request = Request(prompt, options, cancel)
        return self._many(items, self._arrays_of, request, batch, ahead)

    def run_long_audio(
        self,
        path: Path,
        *,
        prompt: Sequence[int] = (),
        options: GenerateOptions | None = None,
        cancel: threading.Event | None = None,
        window_s: float | None = None,
        batch: int = 1,
    ) -> Iterator[Outcome[Window]]:
        """Runs a recording of any length, cut into windows where it is quiet.

        Args:
            path: a sound file.
            prompt: tokens that the text of every window begins with, after the start tokens.
            options: how to generate; None does as the bundle says. `timeout_s` counts for a batch.
            cancel: ends what is decoded between two tokens, and begins no more, once it is set.
            window_s: longest window; None for what the model hears at once.
            batch: how many windows are decoded together.

        Raises:
            InputError: the file cannot be used.
            UsageError: the model takes something else than sound, or `window_s` does not fit it.
        """
        spec = self.bundle.manifest.preprocess
        if not isinstance(spec, AudioInput):
            raise UsageError(f"{self.bundle.folder} does not take sound alone")
        window_s = longest_s(spec, window_s)
        signal = load_audio(path, spec.sampling_rate)

        def arrays_of(parts: Sequence[Window]) -> Arrays:
            return self._typed(batch_audio([part.signal for part in parts], spec))

        parts = windows(signal, spec.sampling_rate, window_s)
        return self._many(parts, arrays_of, Request(prompt, options, cancel), batch, _AHEAD)

    def prepare(
        self, paths: Sequence[Path], *, texts: Sequence[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Makes one batch of encoder inputs of files and texts, padded and masked.

        Raises:
            InputError: a file or text cannot be used.
        """
        preprocess = self.bundle.manifest.preprocess
        return self._typed(prepare(paths, preprocess, folder=self.bundle.folder, texts=texts))

    def prompt_tokens(self, text: str) -> list[int]:
        """Returns the tokens of a prompt.

        Raises:
            UsageError: the bundle has no tokenizer.
        """
        return tokens_of(text, self.bundle.manifest.vocabulary, self.bundle.folder)

    def _run(
        self, inputs: Arrays, request: Request, on_token: OnToken | None, began: float
    ) -> tuple[list[GenerationResult], Timings]:
        if on_token is None:
            return self._runner.run(inputs, request, began)
        with self._runner.stream(inputs, request, began) as stream:
            for event in stream:
                on_token(event)
        return stream.results, stream.timings

    def _many(
        self,
        items: Iterable[Item],
        prepare: Callable[[Sequence[Item]], Arrays],
        request: Request,
        batch: int,
        ahead: int,
    ) -> Iterator[Outcome[Item]]:
        if batch < 1 or ahead < 1:
            raise UsageError(f"batch and ahead must be 1 or more, got {batch} and {ahead}")
        cancel = request.cancel
        work = Prefetcher(
            prepare=prepare,
            run=lambda inputs: self._runner.run(inputs, request, time.perf_counter()),
            cancelled=lambda: cancel is not None and cancel.is_set(),
            batch=batch,
            ahead=ahead,
        )
        return work.outcomes(items)

    def _arrays_of(self, items: Sequence[Path | Arrays]) -> Arrays:
        """Makes one batch of files or arrays."""
        paths = [item for item in items if isinstance(item, Path)]
        if len(paths) == len(items):
            return self.prepare(paths)
        arrays = [self.prepare([item]) if isinstance(item, Path) else item for item in items]
        for each in arrays:
            if any(not array.ndim or len(array) != 1 for array in each.values()):
                raise InputError("an input of several must be a batch of one; split it")
        return batch_arrays(arrays)

    def _typed(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        return with_mask_types(
            inputs,
            mask_names(self.bundle.manifest.preprocess),
            self.bundle.graph(self.variant, GraphRole.ENCODER),
        )


def load_session(
    path: str | Path,
    *,
    variant: str = FLOAT_VARIANT,
    backend: str = DEFAULT_BACKEND,
    threads: int | None = None,
    large_pages: bool = True,
) -> Session:
    """Opens a bundle and loads one of its variants.

    Args:
        path: the bundle's folder.
        variant: name of the variant.
        backend: name of the backend.
        threads: CPU threads within an operator; None leaves it to the backend.
        large_pages: whether what a CPU reads moves onto large pages when a second input comes: each
            further one takes up to 10 % less time, the second one longer, by 1 ms per megabyte.

    Raises:
        InputError: there is no such bundle or variant.
        BundleError: the bundle is damaged.
        MissingDependencyError: the backend's library is not installed.
    """
    bundle, options = open_bundle(Path(path), only=variant), BackendOptions(threads, large_pages)
    return Session(bundle, variant, load_backend(backend, bundle, variant, options))

"""A session: one variant of a bundle, loaded into a backend, that runs files and arrays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from hybrid_deploy.argument_checks import check_text, path_of, paths_of
from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.input_specs import AudioInput
from hybrid_deploy.contract import FLOAT_VARIANT, GraphRole
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.backends.protocol import Backend
from hybrid_deploy.runtime.backends.registry import DEFAULT_BACKEND, BackendOptions, load_backend
from hybrid_deploy.runtime.deadline import Until
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.preprocess.array_files import ARRAYS_SUFFIX, load_arrays
from hybrid_deploy.runtime.preprocess.audio import batch_audio, load_audio
from hybrid_deploy.runtime.preprocess.audio_windows import Window, longest_s, windows
from hybrid_deploy.runtime.preprocess.prepare import batch_arrays, mask_names, prepare
from hybrid_deploy.runtime.session import input_checks
from hybrid_deploy.runtime.session.batch_runner import BatchInputs, BatchRunner, Request
from hybrid_deploy.runtime.session.encoded_input import EncodedInput
from hybrid_deploy.runtime.session.prefetch import Arrays, Item, Outcome, Prefetcher
from hybrid_deploy.runtime.session.results import GenerationResult as GenerationResult
from hybrid_deploy.runtime.session.results import Timings as Timings
from hybrid_deploy.runtime.session.streaming import OnToken, Stream
from hybrid_deploy.runtime.tokenizer import BundleTokenizers, tokens_of

_BATCHES_AHEAD = 2

if TYPE_CHECKING:
    from hybrid_deploy.bundle.signature import Trust


class Session:
    """One variant of a bundle, loaded into a backend; several threads may use it at the same time.

    Attributes:
        bundle: the bundle.
        variant: name of the variant.
        backend: backend that runs the variant's graphs.
        tokenizers: tokenizers of the bundle.
    """

    def __init__(self, bundle: Bundle, variant: str, backend: Backend) -> None:
        self.bundle = bundle
        self.variant = variant
        self.backend = backend
        self.tokenizers = BundleTokenizers(bundle)
        self._runner = BatchRunner(bundle, variant, backend, self.tokenizers)

    def run_files(
        self,
        paths: Sequence[str | Path],
        *,
        texts: Sequence[str] | None = None,
        prompt: Sequence[int] = (),
        options: GenerateOptions | None = None,
        on_token: OnToken | None = None,
        cancel: threading.Event | None = None,
    ) -> tuple[list[GenerationResult], Timings]:
        """Runs one batch of files; returns the results of its sequences, and the times.

        Args:
            paths: one file for each sequence; () for a model that takes only text.
            texts: one text for each sequence, if the encoder takes a text.
            prompt: ids of tokens to continue after the start tokens, which it may begin with.
            options: options of the generation; None takes the bundle's defaults.
            on_token: function that is called with every token when it is decoded.
            cancel: event that ends the generation before the next token once it is set.

        Raises:
            InputError: a file or text cannot be used.
            UsageError: the prompt has an unknown token, or this bundle or backend does not support
                an option.
            BackendError: the backend failed, its logits are not finite, the options allow no
                token, or the tokenizer takes longer than the timeout.
        """
        start, request = time.perf_counter(), Request(prompt, options, cancel)
        with Until(request.deadline(start)):
            inputs = self.prepare(paths, texts=texts)
        return self._run(inputs, request, on_token, start)

    def run_arrays(
        self,
        inputs: Mapping[str, NDArray[Any]],
        *,
        prompt: Sequence[int] = (),
        options: GenerateOptions | None = None,
        on_token: OnToken | None = None,
        cancel: threading.Event | None = None,
    ) -> tuple[list[GenerationResult], Timings]:
        """Runs one batch of arrays; returns the results of its sequences, and the times.

        Args:
            inputs: encoder inputs by name, batch first.
            prompt: as in `run_files`.
            options: as in `run_files`.
            on_token: as in `run_files`.
            cancel: as in `run_files`.

        Raises:
            InputError: an array has another name, type or shape than the encoder takes.
            UsageError: as in `run_files`.
            BackendError: as in `run_files`.
        """
        return self._run(inputs, Request(prompt, options, cancel), on_token, time.perf_counter())

    def encode(
        self,
        inputs: Sequence[str | Path] | Mapping[str, NDArray[Any]],
        *,
        texts: Sequence[str] | None = None,
    ) -> EncodedInput:
        """Encodes one batch and keeps its memory, so that several prompts can be run with it.

        The encoder is the larger part of most runs. A bundle whose encoder reads the prompt, as
        `texts`, encodes an input again for every prompt.

        Args:
            inputs: one file for each sequence, or encoder inputs by name, batch first.
            texts: one text for each sequence, if the encoder takes a text and `inputs` are files.

        Returns:
            The encoded batch for `run_encoded` and `stream`. Its memory is freed by `close`, by
            leaving its `with` block, or when it is no longer used.

        Raises:
            InputError: as in `run_files` and `run_arrays`.
            UsageError: the backend decodes an encoded batch only once.
            BackendError: the backend failed.
        """
        start = time.perf_counter()
        if not isinstance(inputs, Mapping):
            inputs = self.prepare(inputs, texts=texts)
        return self._runner.encode(inputs, start)

    def run_encoded(
        self,
        encoded: EncodedInput,
        *,
        prompt: Sequence[int] = (),
        options: GenerateOptions | None = None,
        on_token: OnToken | None = None,
        cancel: threading.Event | None = None,
    ) -> tuple[list[GenerationResult], Timings]:
        """Runs a batch that `encode` has encoded; the results are those of `run_arrays`.

        Args:
            encoded: the encoded batch; it does not change, and can be run again.
            prompt: as in `run_files`.
            options: as in `run_files`.
            on_token: as in `run_files`.
            cancel: as in `run_files`.

        Returns:
            The results of the sequences, and the times. The encoder does not run: `encoder_ms`
            counts only the copying of caches that it filled.

        Raises:
            UsageError: as in `run_files`; also if another session encoded the batch.
            BackendError: as in `run_files`; also if the batch is closed.
        """
        return self._run(encoded, Request(prompt, options, cancel), on_token, time.perf_counter())

    def stream(
        self,
        inputs: Sequence[str | Path] | Mapping[str, NDArray[Any]] | EncodedInput,
        *,
        texts: Sequence[str] | None = None,
        prompt: Sequence[int] = (),
        options: GenerateOptions | None = None,
        cancel: threading.Event | None = None,
    ) -> Stream:
        """Encodes one batch; returns a stream that decodes its tokens when they are read.

        Args:
            inputs: one file for each sequence, or encoder inputs by name, batch first; or a batch
                that `encode` has encoded.
            texts: one text for each sequence, if the encoder takes a text and `inputs` are files.
            prompt: ids of tokens to continue after the start tokens, which it may begin with.
            options: options of the generation; None takes the bundle's defaults.
            cancel: event that ends the generation before the next token once it is set.

        Raises:
            InputError: as in `run_files` and `run_arrays`.
            UsageError: as in `run_files`; also for a beam search, whose tokens are only known at
                the end.
            BackendError: as in `run_files`; reading a token from the stream raises it too.
        """
        start, request = time.perf_counter(), Request(prompt, options, cancel)
        if not isinstance(inputs, (Mapping, EncodedInput)):
            with Until(request.deadline(start)):
                inputs = self.prepare(inputs, texts=texts)
        return self._runner.stream(inputs, request, start)

    def run_many(
        self,
        items: Iterable[str | Path | Arrays],
        *,
        prompt: Sequence[int] = (),
        options: GenerateOptions | None = None,
        cancel: threading.Event | None = None,
        batch: int = 1,
        ahead: int = _BATCHES_AHEAD,
    ) -> Iterator[Outcome[str | Path | Arrays]]:
        """Returns an iterator that runs any number of inputs, and yields their outcomes in order.

        While one batch is decoded, a thread prepares the next ones. An input that fails has its
        error in its outcome; the others are not affected.

        Args:
            items: files, or encoder inputs by name, each a batch of one; they are taken from the
                iterable only when they are needed.
            prompt: ids of tokens to continue after the start tokens, which it may begin with.
            options: options of the generation; None takes the bundle's defaults. `timeout_s`
                counts for each batch.
            cancel: event that ends the batch before its next token, and starts no other batch,
                once it is set.
            batch: number of inputs that are decoded together.
            ahead: number of batches that are prepared while one is decoded.

        Raises:
            UsageError: `items` are no files or arrays, or `batch` or `ahead` is no whole number
                from 1 to 65,536.
        """
        request = Request(prompt, options, cancel)
        return self._run_batches(items, self._prepare_batch, request, batch, ahead)

    def run_long_audio(
        self,
        path: str | Path,
        *,
        prompt: Sequence[int] = (),
        options: GenerateOptions | None = None,
        cancel: threading.Event | None = None,
        window_s: float | None = None,
        batch: int = 1,
    ) -> Iterator[Outcome[Window]]:
        """Returns an iterator that runs a long recording, cut into windows.

        The recording is cut where it is quiet. The iterator yields the outcome of every window,
        in the order of time.

        Args:
            path: a sound file.
            prompt: ids of tokens that every window's sequence continues, after the start tokens.
            options: options of the generation; None takes the bundle's defaults. `timeout_s`
                counts for each batch.
            cancel: event that ends the batch before its next token, and starts no other batch,
                once it is set.
            window_s: length of the longest window in seconds; None takes the longest that the
                model accepts.
            batch: number of windows that are decoded together.

        Raises:
            InputError: the file cannot be used.
            UsageError: the model does not take sound alone, or `window_s` is out of its range.
        """
        spec = self.bundle.manifest.preprocess
        if not isinstance(spec, AudioInput):
            raise UsageError(
                f"{self.bundle.folder} does not take sound alone, so no recording can be cut into "
                "windows; run it without --long, with run_files"
            )
        window_s = longest_s(spec, window_s)
        signal = load_audio(path_of(path), spec.sampling_rate)

        def prepare_windows(batch_windows: Sequence[Window]) -> Arrays:
            return self._convert_masks(batch_audio([w.signal for w in batch_windows], spec))

        request = Request(prompt, options, cancel)
        all_windows = windows(signal, spec.sampling_rate, window_s)
        return self._run_batches(all_windows, prepare_windows, request, batch, _BATCHES_AHEAD)

    def prepare(
        self, paths: Sequence[str | Path], *, texts: Sequence[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Returns the encoder inputs of one batch of files and texts, padded, with their masks.

        Args:
            paths: one file for each sequence; () for a model that takes only text. Files of the
                suffix `.npz` hold the encoder inputs by name, whatever the model reads else.
            texts: one text for each sequence, if the encoder takes a text.

        Raises:
            InputError: a file or text cannot be used, or a file holds several inputs.
        """
        preprocess, files = self.bundle.manifest.preprocess, paths_of(paths)
        if texts is None and files and all(p.suffix.lower() == ARRAYS_SUFFIX for p in files):
            encoder = self.bundle.graph(self.variant, GraphRole.ENCODER)
            names = [tensor.name for tensor in encoder.inputs]
            inputs = batch_arrays([load_arrays(path, names) for path in files])
        else:
            inputs = prepare(files, preprocess, folder=self.tokenizers, texts=texts)
        input_checks.check_one_each(inputs, files)
        return self._convert_masks(inputs)

    def prompt_tokens(self, text: str) -> list[int]:
        """Returns the token ids of a prompt in words.

        The words are put into the bundle's prompt template, if it has one. Special tokens in the
        text are recognised; none are added.

        Args:
            text: the words that the model is asked in, or the text that it continues.

        Raises:
            UsageError: the bundle has no tokenizer.
            BundleError: the tokenizer's file is missing or damaged.
        """
        manifest = self.bundle.manifest
        return tokens_of(text, manifest.vocabulary, self.tokenizers, manifest.prompt)

    def _run(
        self, inputs: BatchInputs, request: Request, on_token: OnToken | None, start: float
    ) -> tuple[list[GenerationResult], Timings]:
        if on_token is None:
            return self._runner.run(inputs, request, start)
        with self._runner.stream(inputs, request, start) as stream:
            for event in stream:
                on_token(event)
        return stream.results, stream.timings

    def _run_batches(
        self,
        items: Iterable[Item],
        prepare: Callable[[Sequence[Item]], Arrays],
        request: Request,
        batch: int,
        ahead: int,
    ) -> Iterator[Outcome[Item]]:
        prefetcher = Prefetcher(
            prepare=prepare,
            run=lambda inputs: self._runner.run(inputs, request, time.perf_counter()),
            cancelled=request.is_cancelled,
            deadline=request.deadline,
            batch=batch,
            ahead=ahead,
        )
        return prefetcher.outcomes(items)

    def _prepare_batch(self, items: Sequence[str | Path | Arrays]) -> Arrays:
        """Returns the encoder inputs of one batch of files or arrays."""
        paths = [item for item in items if isinstance(item, (str, Path))]
        if len(paths) == len(items):
            return self.prepare(paths)
        arrays = [self.prepare([item]) if isinstance(item, (str, Path)) else item for item in items]
        input_checks.check_batches_of_one(arrays)
        return batch_arrays(arrays)

    def _convert_masks(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        return input_checks.with_mask_types(
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
    trust: Trust | None = None,
) -> Session:
    """Opens a bundle and loads one of its variants.

    Args:
        path: folder of the bundle.
        variant: name of the variant.
        backend: name of the backend.
        threads: number of CPU threads of one operator; None leaves the choice to the backend.
        large_pages: whether the weights and buffers of a CPU backend move onto RAM pages of 2 MB at
            the second batch: that batch takes longer, by 1 ms per megabyte; later ones take up to
            10 % less time.
        trust: which signatures of the bundle are accepted; None accepts a bundle without one.

    Raises:
        InputError: the folder holds no bundle, or the bundle has no such variant.
        BundleError: the bundle is damaged, or no trusted key signed it.
        UsageError: there is no such backend, or it does not run this variant.
        MissingDependencyError: the backend's library is not installed.
        BackendError: the backend cannot load the variant.
    """
    check_text("variant", variant)
    bundle = open_bundle(path, only=variant, trust=trust)
    loaded = load_backend(backend, bundle, variant, BackendOptions(threads, large_pages))
    return Session(bundle, variant, loaded)

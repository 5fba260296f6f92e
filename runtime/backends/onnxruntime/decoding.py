"""The decoding of a batch in ONNX Runtime: persistent IO bindings, caches updated in place."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.manifest import GraphSpec, TensorSpec
from hybrid_deploy.contract import (
    BATCH_DIM,
    CANDIDATES,
    ERROR_BOUND,
    HIDDEN,
    LAST,
    LOGITS,
    POSITION,
    TOKEN,
    TOKENS,
    GraphRole,
    cache_of,
    is_memory,
    is_next_cache,
    is_recurrent,
    next_cache,
)
from hybrid_deploy.errors import MissingDependencyError, UsageError
from hybrid_deploy.runtime.backends.onnxruntime.cache_rows import (
    chosen_rows,
    filled_part,
    inputs_of,
    move_rows,
)
from hybrid_deploy.runtime.backends.onnxruntime.inference_session import (
    backend_errors,
    decoding_error,
    run_in_time,
)
from hybrid_deploy.runtime.backends.onnxruntime.variant_sessions import VariantSessions
from hybrid_deploy.runtime.backends.prefill_by_steps import prefill_by_steps
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.backends.tensor_checks import DTYPES
from hybrid_deploy.runtime.deadline import StoppedError

try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingDependencyError("onnxruntime", extra="cpu") from error

_FEW_TOKENS = 4
"""Longest prompts, all of one length, that are decoded by steps although there is a prefill graph.

The first run of the prefill graph loads its session, with weights of its own.
"""


class OnnxRuntimeDecoding:
    """The decoding of one batch. All tensors of the step graph are bound once, in `__init__`.

    Attributes:
        batch: number of sequences.
        heads: outputs of the decoder's further heads in the newest run, by name, (batch, width)
            each; valid until the next call.
        error_bound: largest error of a logit of the newest step, (batch,) float32; None if the
            logits are exact.
        shortest_prefill: number of tokens from which prompts of one length go through the prefill
            graph; shorter ones are decoded by steps.

    Args:
        sessions: sessions of the variant.
        batch: number of sequences.
        encoded: outputs of the encoder by name: the memory, the first recurrent states, and caches
            that the encoder fills.
        beams: number of sequences per input, side by side, that share the input's memory. None for
            a decoding without a beam search, whose logits may be approximate.
    """

    def __init__(
        self,
        sessions: VariantSessions,
        batch: int,
        encoded: Mapping[str, ort.OrtValue],
        beams: int | None = None,
    ) -> None:
        self.batch = batch
        self.shortest_prefill = _FEW_TOKENS + 1
        self._sessions = sessions
        self._beams = beams
        self._token = np.zeros(batch, np.int64)
        self._position = np.zeros(batch, np.int64)
        step = sessions.spec(GraphRole.STEP if beams is None else GraphRole.BEAM_STEP)
        self._set_caches(step, encoded)
        self._set_results(step)
        fed = {TOKEN: self._token, POSITION: self._position}
        session = sessions.step_session if beams is None else sessions.beam_session
        assert session is not None, "beams share memory in the beam step graph only"
        self._session = session
        self._bindings = [
            self._bind(session, fed, read_index) for read_index in range(2 if self._states else 1)
        ]
        self._read_index = 0

    def _set_caches(self, step: GraphSpec, encoded: Mapping[str, ort.OrtValue]) -> None:
        """Sets memory, caches, and two buffers for each recurrent state: one read, one written."""
        written = {cache_of(spec.name) for spec in step.outputs if is_next_cache(spec.name)}
        names = {name for name in written if not is_memory(name)}
        self._memory = {name: value for name, value in encoded.items() if name not in names}
        self._caches = {
            spec.name: encoded[spec.name] if spec.name in encoded else _zeros(spec, self.batch)
            for spec in step.inputs
            if spec.name in names and not is_recurrent(spec.name)
        }
        self._filled = 0
        self._states = {
            name: (encoded[name].numpy().copy(), encoded[name].numpy().copy())
            for name in sorted(names)
            if is_recurrent(name)
        }

    def _set_results(self, step: GraphSpec) -> None:
        """Allocates the outputs that are no caches, for the step graph and the prefill graph."""
        results: dict[str, NDArray[Any]] = {
            spec.name: np.empty(_sizes(spec, self.batch), DTYPES[spec.dtype])
            for spec in (*self._sessions.prefill_outputs, *step.outputs)
            if not is_next_cache(spec.name)
        }
        self._results = {name: _ort_value(array) for name, array in results.items()}
        self._logits: FloatArray = results.pop(LOGITS)
        self._hidden: FloatArray | None = results.pop(HIDDEN, None)
        error_bound: FloatArray | None = results.pop(ERROR_BOUND, None)
        self.error_bound = error_bound if self._beams is None else None
        self._is_approximate = False
        self.heads = results

    @property
    def resizable(self) -> bool:
        """Whether the graphs take any number of sequences."""
        return self._sessions.fixed_batch is None

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        """Decodes several tokens per sequence; see `Decoding.prefill`."""
        return self._exact(self.prefill_approximate(tokens, position, last))

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        """Decodes one token per sequence; see `Decoding.step`."""
        return self._exact(self.step_approximate(token, position))

    def exact_logits(self, row: int, tokens: IntArray) -> FloatArray:
        """Returns the exact logits of chosen tokens after the newest step, (n,) float32.

        Args:
            row: index of the sequence in the batch.
            tokens: the chosen tokens, (n,) int64.
        """
        if not self._is_approximate:
            computed: FloatArray = self._logits[row, tokens]
            return computed
        refine = self._sessions.refine_session
        assert refine is not None, "a variant with approximate logits has a refine graph"
        assert self._hidden is not None, "its decoder returns the rows that are projected to logits"
        inputs = {HIDDEN: self._hidden[row : row + 1], CANDIDATES: tokens}
        with backend_errors("the refine graph"):
            exact = run_in_time(lambda *options: refine.run(None, inputs, *options))
            logits: FloatArray = np.asarray(exact[0])[0]
        return logits

    def prefill_approximate(
        self, tokens: IntArray, position: IntArray, last: IntArray
    ) -> FloatArray:
        """Does the same as `prefill`, but the logits are exact only within the error bound."""
        few = tokens.shape[1] < self.shortest_prefill and (last == tokens.shape[1] - 1).all()
        one_per_input = self._beams in (None, 1)
        session = self._sessions.prefill_session if one_per_input and not few else None
        if session is None:
            step, undo, heads = self.step_approximate, self._undo_step, self.heads.values()
            return prefill_by_steps(step, undo, tokens, position, last, heads)
        arrays = {TOKENS: tokens, POSITION: position, LAST: last}
        self._filled = max(self._filled, int(position.max()) + tokens.shape[1])
        try:
            binding = self._bind(session, arrays)
            run_in_time(lambda *options: session.run_with_iobinding(binding, *options))
        except StoppedError:
            raise
        except Exception as error:
            raise decoding_error("the prefill graph", tokens, error) from error
        self._is_approximate = self._hidden is not None
        return self._logits if self._beams is None else self._exact(self._logits)

    def step_approximate(self, token: IntArray, position: IntArray) -> FloatArray:
        """Does the same as `step`, but the logits are exact only within the error bound."""
        self._token[:] = token
        self._position[:] = position
        binding = self._bindings[self._read_index]
        try:
            run_in_time(lambda *options: self._session.run_with_iobinding(binding, *options))
        except StoppedError:
            raise
        except Exception as error:
            raise decoding_error("the step graph", token, error) from error
        self._read_index = (self._read_index + 1) % len(self._bindings)
        self._is_approximate = self.error_bound is not None
        return self._logits

    def _exact(self, logits: FloatArray) -> FloatArray:
        if not self._is_approximate:
            return logits
        vocabulary = np.arange(logits.shape[1])
        return np.stack([self.exact_logits(row, vocabulary) for row in range(self.batch)])

    def reorder(self, rows: IntArray) -> None:
        """Copies caches and states between sequences: sequence i continues from rows[i]."""
        if (rows == np.arange(self.batch)).all():
            return
        capacity, filled = self._sessions.capacity, self._tokens_held()
        for value in self._caches.values():
            move_rows(filled_part(_shared_array(value), capacity, filled), rows)
        for buffers in self._states.values():
            move_rows(buffers[self._read_index], rows)

    def select(self, rows: IntArray) -> OnnxRuntimeDecoding:
        """Returns the decoding of chosen sequences; see `ReorderableDecoding.select`.

        Raises:
            UsageError: the graphs have a fixed batch, and `rows` has another length.
        """
        fixed = self._sessions.fixed_batch
        if fixed not in (None, len(rows)):
            raise UsageError(
                f"the graphs decode {fixed} sequences at a time, {len(rows)} are needed; use no "
                "beams, or export without --batch"
            )
        inputs, beams = inputs_of(rows, self._beams or 1)
        return self._with_rows(rows, inputs, None if self._beams is None else beams)

    def expand_beams(self, count: int) -> OnnxRuntimeDecoding:
        """Returns the decoding in which every sequence becomes `count` beams, side by side."""
        rows = np.repeat(np.arange(self.batch), count)
        if self._sessions.fixed_batch is not None or self._sessions.beam_session is None:
            return self if count == 1 else self.select(rows)
        beams = self._beams or 1
        return self._with_rows(rows, np.arange(self.batch // beams), beams * count)

    def _with_rows(
        self, rows: IntArray, inputs: IntArray, beams: int | None
    ) -> OnnxRuntimeDecoding:
        """Returns the decoding of chosen sequences; memory and caches that stay are not copied."""
        capacity, filled = self._sessions.capacity, self._tokens_held()
        encoded = dict(self._memory)
        if not np.array_equal(inputs, np.arange(self.batch // (self._beams or 1))):
            for name in self._batched_memory():
                encoded[name] = _ort_value(_shared_array(encoded[name])[inputs])
        moved = not np.array_equal(rows, np.arange(self.batch))
        for name, value in self._caches.items():
            cache = _shared_array(value)
            end = cache.shape[-2] - capacity + filled
            encoded[name] = _ort_value(chosen_rows(cache, rows, end)) if moved else value
        for name, buffers in self._states.items():
            encoded[name] = _ort_value(buffers[self._read_index][rows])
        chosen = OnnxRuntimeDecoding(self._sessions, len(rows), encoded, beams)
        chosen._filled = filled
        return chosen

    def _batched_memory(self) -> list[str]:
        """Returns the names of the memory tensors whose first dimension is the batch."""
        outputs = self._sessions.spec(GraphRole.ENCODER).outputs
        batch = (BATCH_DIM, self._sessions.fixed_batch)
        return [s.name for s in outputs if s.name in self._memory and s.shape[0] in batch]

    def _tokens_held(self) -> int:
        """Returns the number of cache positions that hold tokens."""
        return max(self._filled, int(self._position.max()) + 1)

    def _undo_step(self, rows: IntArray) -> None:
        """Restores the recurrent states of these sequences from before the newest step."""
        for buffers in self._states.values():
            buffers[self._read_index][rows] = buffers[1 - self._read_index][rows]

    def _bind(
        self, session: ort.InferenceSession, arrays: Mapping[str, NDArray[Any]], read_index: int = 0
    ) -> ort.IOBinding:
        """Returns a binding of all tensors; `read_index` chooses the states' input buffers."""
        binding = session.io_binding()
        inputs = {spec.name for spec in session.get_inputs()}
        for name, array in arrays.items():
            if name in inputs:
                binding.bind_ortvalue_input(name, _ort_value(np.ascontiguousarray(array)))
        for name, buffers in self._states.items():
            binding.bind_ortvalue_input(name, _ort_value(buffers[read_index]))
            binding.bind_ortvalue_output(next_cache(name), _ort_value(buffers[1 - read_index]))
        outputs = {spec.name for spec in session.get_outputs()}
        for name, value in self._results.items():
            if name in outputs:
                binding.bind_ortvalue_output(name, value)
        for name, value in {**self._memory, **self._caches}.items():
            if name in inputs:
                binding.bind_ortvalue_input(name, value)
            if next_cache(name) in outputs:
                binding.bind_ortvalue_output(next_cache(name), value)
        return binding


def _ort_value(array: NDArray[Any]) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(array)


def _shared_array(value: ort.OrtValue) -> NDArray[Any]:
    """Returns an array over a tensor's own bytes; `numpy()` of old ONNX Runtimes is a copy."""
    array: NDArray[Any] = value.numpy()
    if array.ctypes.data == value.data_ptr() or not array.size:
        return array
    data = (ctypes.c_byte * array.nbytes).from_address(value.data_ptr())
    shared: NDArray[Any] = np.ctypeslib.as_array(data).view(array.dtype).reshape(array.shape)
    return shared


def copy_of(value: ort.OrtValue) -> ort.OrtValue:
    """Returns a tensor with the same content in RAM of its own."""
    return _ort_value(_shared_array(value).copy())


def _zeros(spec: TensorSpec, batch: int) -> ort.OrtValue:
    return _ort_value(np.zeros(_sizes(spec, batch), DTYPES[spec.dtype]))


def _sizes(spec: TensorSpec, batch: int) -> Sequence[int]:
    """Returns the sizes of a cache or result; its only symbolic dimension is the batch."""
    return [size if isinstance(size, int) else batch for size in spec.shape]

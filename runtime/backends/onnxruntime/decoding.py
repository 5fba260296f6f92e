"""A batch that ONNX Runtime decodes: persistent IO binding, caches updated in place."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.manifest import TensorSpec
from hybrid_deploy.contract import (
    BATCH_DIM,
    CANDIDATES,
    HIDDEN,
    LAST,
    LOGITS,
    MARGIN,
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
from hybrid_deploy.errors import BackendError, MissingDependencyError, UsageError
from hybrid_deploy.runtime.backends.onnxruntime.cache_rows import (
    chosen_rows,
    filled_part,
    inputs_of,
    move_rows,
)
from hybrid_deploy.runtime.backends.onnxruntime.inference_session import failures
from hybrid_deploy.runtime.backends.onnxruntime.variant_sessions import VariantSessions
from hybrid_deploy.runtime.backends.prefill_by_steps import prefill_by_steps
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.backends.tensor_checks import DTYPES

try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingDependencyError("onnxruntime", extra="cpu") from error

_FEW_TOKENS = 4
"""A prompt up to this length takes steps: the prefill graph has weights of its own to load."""


class OnnxRuntimeDecoding:
    """One batch: every tensor is bound once, a step only changes what the buffers hold.

    Attributes:
        batch: how many sequences are decoded.
        heads: what further heads of the decoder gave last, (batch, width) each, by name.

    Args:
        graphs: of the variant.
        batch: how many sequences are decoded.
        encoded: memory, and caches that are not empty, by name.
        beams: how many sequences share a memory, side by side; None for a decoding that does not
            search, whose logits may be rough.
    """

    def __init__(
        self,
        graphs: VariantSessions,
        batch: int,
        encoded: Mapping[str, ort.OrtValue],
        beams: int | None = None,
    ) -> None:
        self.batch = batch
        self._graphs = graphs
        self._beams = beams
        self._token = np.zeros(batch, np.int64)
        self._position = np.zeros(batch, np.int64)
        step = graphs.spec(GraphRole.STEP if beams is None else GraphRole.BEAM_STEP)
        written = {cache_of(spec.name) for spec in step.outputs if is_next_cache(spec.name)}
        kept = {name for name in written if not is_memory(name)}
        self._memory = {name: value for name, value in encoded.items() if name not in kept}
        self._caches = {
            spec.name: encoded[spec.name] if spec.name in encoded else _zeros(spec, batch)
            for spec in step.inputs
            if spec.name in kept and not is_recurrent(spec.name)
        }
        self._filled = 0
        self._carried = {
            name: (encoded[name].numpy().copy(), encoded[name].numpy().copy())
            for name in sorted(kept)
            if is_recurrent(name)
        }
        results: dict[str, NDArray[Any]] = {
            spec.name: np.empty(_sizes(spec, batch), DTYPES[spec.dtype])
            for spec in (*graphs.prefill_outputs, *step.outputs)
            if not is_next_cache(spec.name)
        }
        self._results = {name: _ort_value(array) for name, array in results.items()}
        self._logits: FloatArray = results.pop(LOGITS)
        self._hidden: FloatArray | None = results.pop(HIDDEN, None)
        margin: FloatArray | None = results.pop(MARGIN, None)
        self.error_bound = margin if beams is None else None
        self._is_rough = False
        self.heads = results
        fed = {TOKEN: self._token, POSITION: self._position}
        session = graphs.step_session if beams is None else graphs.beam_session
        assert session is not None, "beams share memory in a graph that does that"
        self._session = session
        self._bindings = [
            self._bind(session, fed, turn) for turn in range(2 if self._carried else 1)
        ]
        self._turn = 0

    @property
    def resizable(self) -> bool:
        """Whether the graphs take another number of sequences."""
        return self._graphs.fixed_batch is None

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        """Decodes several tokens per sequence."""
        return self._true(self.prefill_approximate(tokens, position, last))

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        """Decodes one token per sequence."""
        return self._true(self.step_approximate(token, position))

    def exact_logits(self, row: int, tokens: IntArray) -> FloatArray:
        """Returns the true logits of some tokens after the newest step, (n,)."""
        if not self._is_rough:
            known: FloatArray = self._logits[row, tokens]
            return known
        refine = self._graphs.refine_session
        assert refine is not None, "rough logits come with a graph that refines them"
        assert self._hidden is not None, "and with the rows that they are made of"
        inputs = {HIDDEN: self._hidden[row : row + 1], CANDIDATES: tokens}
        with failures("the refine graph"):
            logits: FloatArray = np.asarray(refine.run(None, inputs)[0])[0]
        return logits

    def prefill_approximate(
        self, tokens: IntArray, position: IntArray, last: IntArray
    ) -> FloatArray:
        """Decodes several tokens per sequence; the logits are within the margin."""
        few = tokens.shape[1] <= _FEW_TOKENS and (last == tokens.shape[1] - 1).all()
        alone = self._beams in (None, 1)
        session = self._graphs.prefill_session if alone and not few else None
        if session is None:
            return prefill_by_steps(self.step_approximate, self._keep, tokens, position, last)
        arrays = {TOKENS: tokens, POSITION: position, LAST: last}
        self._filled = max(self._filled, int(position.max()) + tokens.shape[1])
        with failures("the prefill graph"):
            session.run_with_iobinding(self._bind(session, arrays))
        self._is_rough = self._hidden is not None
        return self._logits if self._beams is None else self._true(self._logits)

    def step_approximate(self, token: IntArray, position: IntArray) -> FloatArray:
        """Decodes one token per sequence; the logits are within the margin."""
        self._token[:] = token
        self._position[:] = position
        try:
            self._session.run_with_iobinding(self._bindings[self._turn])
        except Exception as error:
            raise BackendError(f"onnxruntime failed in the step graph: {error}") from error
        self._turn = (self._turn + 1) % len(self._bindings)
        self._is_rough = self.error_bound is not None
        return self._logits

    def _true(self, logits: FloatArray) -> FloatArray:
        if not self._is_rough:
            return logits
        every = np.arange(logits.shape[1])
        return np.stack([self.exact_logits(row, every) for row in range(self.batch)])

    def reorder(self, rows: IntArray) -> None:
        """Lets every sequence go on from what another one was; memory stays where it is."""
        if (rows == np.arange(self.batch)).all():
            return
        capacity, filled = self._graphs.capacity, self._tokens_held()
        for value in self._caches.values():
            move_rows(filled_part(_cells(value), capacity, filled), rows)
        for buffers in self._carried.values():
            move_rows(buffers[self._turn], rows)

    def select(self, rows: IntArray) -> OnnxRuntimeDecoding:
        """Returns the decoding of chosen sequences."""
        fixed = self._graphs.fixed_batch
        if fixed not in (None, len(rows)):
            raise UsageError(
                f"the graphs decode {fixed} sequences at a time, {len(rows)} are needed; use no "
                "beams, or export without --batch"
            )
        inputs, beams = inputs_of(rows, self._beams or 1)
        return self._with(rows, inputs, None if self._beams is None else beams)

    def expand_beams(self, count: int) -> OnnxRuntimeDecoding:
        """Returns the decoding in which every sequence is `count` beams."""
        rows = np.repeat(np.arange(self.batch), count)
        if self._graphs.fixed_batch is not None or self._graphs.beam_session is None:
            return self if count == 1 else self.select(rows)
        shared = self._beams or 1
        return self._with(rows, np.arange(self.batch // shared), shared * count)

    def _with(self, rows: IntArray, inputs: IntArray, beams: int | None) -> OnnxRuntimeDecoding:
        """Returns the decoding of chosen sequences of chosen inputs; what stays is not copied."""
        capacity, filled = self._graphs.capacity, self._tokens_held()
        encoded = dict(self._memory)
        if not np.array_equal(inputs, np.arange(self.batch // (self._beams or 1))):
            for name in self._batched_memory():
                encoded[name] = _ort_value(_cells(encoded[name])[inputs])
        moved = not np.array_equal(rows, np.arange(self.batch))
        for name, value in self._caches.items():
            cells = _cells(value)
            end = cells.shape[-2] - capacity + filled
            encoded[name] = _ort_value(chosen_rows(cells, rows, end)) if moved else value
        for name, buffers in self._carried.items():
            encoded[name] = _ort_value(buffers[self._turn][rows])
        chosen = OnnxRuntimeDecoding(self._graphs, len(rows), encoded, beams)
        chosen._filled = filled
        return chosen

    def _batched_memory(self) -> list[str]:
        """Names the memory tensors that every input has its own of."""
        outputs = self._graphs.spec(GraphRole.ENCODER).outputs
        batch = (BATCH_DIM, self._graphs.fixed_batch)
        return [s.name for s in outputs if s.name in self._memory and s.shape[0] in batch]

    def _tokens_held(self) -> int:
        """Returns how many positions of the caches were written."""
        return max(self._filled, int(self._position.max()) + 1)

    def _keep(self, rows: IntArray) -> None:
        """Takes back the newest step for these sequences, in what is carried."""
        for buffers in self._carried.values():
            buffers[self._turn][rows] = buffers[1 - self._turn][rows]

    def _bind(
        self, session: ort.InferenceSession, arrays: Mapping[str, NDArray[Any]], turn: int = 0
    ) -> ort.IOBinding:
        """Binds all tensors; what is carried goes from one buffer to the other."""
        binding = session.io_binding()
        taken = {spec.name for spec in session.get_inputs()}
        for name, array in arrays.items():
            if name in taken:
                binding.bind_ortvalue_input(name, _ort_value(np.ascontiguousarray(array)))
        for name, buffers in self._carried.items():
            binding.bind_ortvalue_input(name, _ort_value(buffers[turn]))
            binding.bind_ortvalue_output(next_cache(name), _ort_value(buffers[1 - turn]))
        given = {spec.name for spec in session.get_outputs()}
        for name, value in self._results.items():
            if name in given:
                binding.bind_ortvalue_output(name, value)
        for name, value in {**self._memory, **self._caches}.items():
            if name in taken:
                binding.bind_ortvalue_input(name, value)
            if next_cache(name) in given:
                binding.bind_ortvalue_output(next_cache(name), value)
        return binding


def _ort_value(array: NDArray[Any]) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(array)


def _cells(value: ort.OrtValue) -> NDArray[Any]:
    """Returns a tensor's own numbers, not a copy of them; older versions copy in `numpy()`."""
    array: NDArray[Any] = value.numpy()
    if array.ctypes.data == value.data_ptr() or not array.size:
        return array
    held = (ctypes.c_byte * array.nbytes).from_address(value.data_ptr())
    cells: NDArray[Any] = np.ctypeslib.as_array(held).view(array.dtype).reshape(array.shape)
    return cells


def _zeros(spec: TensorSpec, batch: int) -> ort.OrtValue:
    return _ort_value(np.zeros(_sizes(spec, batch), DTYPES[spec.dtype]))


def _sizes(spec: TensorSpec, batch: int) -> Sequence[int]:
    """Returns concrete sizes; the one symbolic dimension of caches and logits is the batch."""
    return [size if isinstance(size, int) else batch for size in spec.shape]

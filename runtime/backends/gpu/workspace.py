"""The buffers and bindings on a device for one batch size and one set of input shapes.

A workspace serves every batch of these shapes, because a new one is slow to make: it allocates
buffers, runs the step engine once, and needs new CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.contract import (
    LAST,
    NEXT_POSITION,
    NEXT_TOKEN,
    POSITION,
    SCORE,
    TOKEN,
    TOKENS,
    is_next_cache,
)
from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.gpu.buffers import DeviceBuffers
from hybrid_deploy.runtime.backends.gpu.device import Buffer, Device, HostBuffer
from hybrid_deploy.runtime.backends.gpu.engine import BYTES, Engine, EngineContext
from hybrid_deploy.runtime.backends.gpu.engine_set import EngineSet
from hybrid_deploy.runtime.backends.gpu.kv_caches import DeviceCaches, cache_names
from hybrid_deploy.runtime.backends.gpu.token_ring import TokenRing
from hybrid_deploy.runtime.backends.protocol import IntArray

Shapes = Mapping[str, tuple[int, ...]]
_Bindings = tuple[tuple[str, Buffer], ...]


class Workspace:
    """Buffers and bindings of one batch size and one set of input shapes.

    Attributes:
        batch: number of sequences.
        caches: the caches and recurrent states of the decoder.
        ring: the slots for the tokens of a block.
        uses: number of batches that it was used for; only the decoding of the last one is valid.
        broken: whether a run failed in it, so that it must not serve another batch.
    """

    def __init__(self, device: Device, engines: EngineSet, shapes: Shapes, steps: int) -> None:
        self.batch = next(iter(shapes.values()))[0]
        self.uses = 0
        self.broken = False
        self._device = device
        self._engines = engines
        self._buffers = DeviceBuffers(device)
        self._step: EngineContext | None = None
        self._step_bindings: dict[tuple[int, int], _Bindings] = {}
        try:
            self._allocate(shapes, steps)
            self._step = self._step_context()
            self._step.enqueue()  # the first run with a shape cannot be recorded
            device.synchronize()
        except BaseException:
            self.close()
            raise

    @property
    def nbytes(self) -> int:
        """Size in bytes of the buffers that the workspace holds on the device."""
        return self._buffers.nbytes + (self._step.nbytes if self._step is not None else 0)

    def _allocate(self, shapes: Shapes, steps: int) -> None:
        engines, buffers = self._engines, self._buffers
        encoder, step = engines.encoder, engines.step
        engines.encoder_context.set_shapes(shapes)
        self._shapes = dict(shapes)
        self._inputs = {
            name: (buffers.allocate_host(nbytes), buffers.allocate(nbytes))
            for name, nbytes in _sizes(encoder, shapes)
        }
        encoded = {name: engines.encoder_context.shape(name) for name in encoder.outputs}
        names = cache_names(step)
        declared = {name: (self.batch, *step.inputs[name].shape[1:]) for name in names}
        self._cache_shapes = {name: encoded.get(name, declared[name]) for name in names}
        self.caches = DeviceCaches(self._device, buffers, step, self._cache_shapes)
        self._encoded = {
            name: self.caches.first_buffer(name) if name in names else buffers.allocate(nbytes)
            for name, nbytes in _sizes(encoder, encoded)
        }
        self._memory_shapes = {n: s for n, s in encoded.items() if n not in names}
        self.ring = TokenRing(self._device, buffers, self.batch, steps)
        prompt_bytes = self.batch * engines.capacity * np.dtype(np.int64).itemsize
        self._prompt = buffers.allocate_host(prompt_bytes), buffers.allocate(prompt_bytes)
        last_bytes = self.ring.first_position.nbytes
        self._last = buffers.allocate_host(last_bytes), buffers.allocate(last_bytes)

    def _step_context(self) -> EngineContext:
        """Returns a context of this workspace alone, as its CUDA graphs keep pointing into it."""
        step = self._engines.step
        context = step.context()
        try:
            context.set_shapes(self._step_shapes())
            self._results = {
                name: self._result(name, context)
                for name in step.outputs
                if not is_next_cache(name) and name not in (NEXT_TOKEN, NEXT_POSITION, SCORE)
            }
            self._bind_fixed(context, step)
            _bind(context, self._bindings(step, 0, read_index=0))
        except BaseException:
            context.close()
            raise
        return context

    def _result(self, name: str, context: EngineContext) -> tuple[HostBuffer, Buffer, Any]:
        shape, dtype = context.shape(name), self._engines.step.outputs[name].dtype
        nbytes = int(np.prod(shape)) * BYTES[dtype]
        host = self._buffers.allocate_host(nbytes)
        return host, self._buffers.allocate(nbytes), (np.dtype(dtype), shape)

    def _step_shapes(self) -> Shapes:
        fed = {TOKEN: (self.batch,), POSITION: (self.batch,)}
        shapes = fed | self._memory_shapes | self._cache_shapes
        return {name: shapes[name] for name in self._engines.step.inputs}

    def _bind_fixed(self, context: EngineContext, engine: Engine) -> None:
        """Binds the tensors that have the same buffer in every run: memory and results."""
        for name, buffer in self._encoded.items():
            if name in engine.inputs and name in self._memory_shapes:
                context.bind(name, buffer)
        for name in engine.outputs:
            if name in self._results:
                context.bind(name, self._results[name][1])

    def _bindings(self, engine: Engine, slot: int, read_index: int) -> _Bindings:
        """Returns the tensors and buffers of a run from a slot of the ring to the next slot."""
        ring = self.ring
        slots = {
            TOKEN: ring.tokens[slot],
            POSITION: ring.positions[slot],
            NEXT_TOKEN: ring.tokens[slot + 1],
            NEXT_POSITION: ring.positions[slot + 1],
            SCORE: ring.scores[slot],
        }
        used = [(n, b) for n, b in slots.items() if n in engine.inputs or n in engine.outputs]
        return (*used, *self.caches.bindings(read_index))

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Starts a batch: clears the caches and enqueues a run of the encoder.

        Args:
            inputs: the encoder's inputs by name, contiguous.
        """
        self.uses += 1
        self.caches.clear()
        context = self._engines.encoder_context
        context.set_shapes(self._shapes)
        for name, (host, buffer) in self._inputs.items():
            host.fill(inputs[name])
            self._device.upload(buffer, host)
            context.bind(name, buffer)
        for name, buffer in self._encoded.items():
            context.bind(name, buffer)
        context.enqueue()

    @property
    def encoded(self) -> Mapping[str, Buffer]:
        """Buffers that the encoder writes, by name: the memory, and caches that it fills."""
        return self._encoded

    def resume(self, kept: Mapping[str, Buffer]) -> None:
        """Starts a batch that was encoded before: clears the caches, copies the encoder's outputs.

        Args:
            kept: copies of the buffers in `encoded`, by name.
        """
        self.uses += 1
        self.caches.clear()
        for name, buffer in self._encoded.items():
            self._device.copy(buffer, kept[name])

    def enqueue_step(self, slot: int, read_index: int) -> None:
        """Enqueues a run of the step engine.

        Args:
            slot: slot of the ring that the run reads; it writes the next slot.
            read_index: index of the cache buffers that the run reads.
        """
        assert self._step is not None
        if (slot, read_index) not in self._step_bindings:
            bindings = self._bindings(self._engines.step, slot, read_index)
            self._step_bindings[slot, read_index] = bindings
        _bind(self._step, self._step_bindings[slot, read_index])
        self._step.enqueue()

    def capture_obstacle(self) -> str | None:
        """Returns why steps cannot be recorded in a CUDA graph; None if no reason is known."""
        assert self._step is not None
        return self._step.capture_obstacle()

    def enqueue_prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> None:
        """Enqueues a run of the prefill engine.

        Args:
            tokens: prompts, (batch, length) int64, padded on the right.
            position: position of the first token of each sequence, (batch,) int64.
            last: index of each sequence's last real token, (batch,) int64.
        """
        context, prefill = self._engines.prefill_context, self._engines.prefill
        assert context is not None and prefill is not None
        fed = {TOKENS: tokens.shape, POSITION: last.shape, LAST: last.shape}
        shapes = self._memory_shapes | self._cache_shapes | fed
        context.set_shapes({name: shapes[name] for name in prefill.inputs})
        self.ring.begin(tokens[:, 0], position)
        uploads = {TOKENS: (self._prompt, tokens), LAST: (self._last, last)}
        for name, ((host, buffer), array) in uploads.items():
            if name in prefill.inputs:
                host.fill(array)
                self._device.upload(buffer.part(0, array.nbytes), host)
                context.bind(name, buffer)
        self._bind_fixed(context, prefill)
        _bind(context, self._bindings(prefill, 0, self.caches.read_index))
        context.enqueue()

    def fetch(self) -> dict[str, NDArray[Any]]:
        """Waits for the newest run, and returns its logits and further heads by name.

        Returns:
            Views of host buffers that the workspace owns, valid until the next `fetch`.

        Raises:
            BackendError: the device failed.
        """
        for host, buffer, _ in self._results.values():
            self._device.download(host, buffer)
        self._device.synchronize()
        return {
            name: host.view(dtype, shape)
            for name, (host, _, (dtype, shape)) in self._results.items()
        }

    def close(self) -> None:
        """Frees every buffer; further errors of a device that has failed are ignored."""
        with suppress(BackendError):
            self._device.synchronize()
        if self._step is not None:
            self._step.close()
            self._step = None
        self._buffers.close()


def _bind(context: EngineContext, bindings: _Bindings) -> None:
    for name, buffer in bindings:
        context.bind(name, buffer)


def _sizes(engine: Engine, shapes: Shapes) -> Iterable[tuple[str, int]]:
    """Yields the name and the size in bytes of each tensor that has a shape in `shapes`."""
    tensors = {**engine.inputs, **engine.outputs}
    for name, shape in shapes.items():
        yield name, int(np.prod(shape)) * BYTES[tensors[name].dtype]

"""Everything on a device that serves one batch size and one set of input shapes.

It is made once and serves every batch of those shapes: a new one costs allocations, a run that
warms the step engine up, and the recording of graphs.
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
_Places = tuple[tuple[str, Buffer], ...]


class Workspace:
    """Buffers and bindings of one batch size and one set of input shapes.

    Attributes:
        batch: how many sequences.
        caches: the caches of the decoder.
        ring: where the tokens of a block lie.
        uses: how many batches it has served; a decoding of an earlier one is over.
        broken: whether a run failed in it, so that it must not serve another batch.
    """

    def __init__(self, device: Device, graphs: EngineSet, shapes: Shapes, steps: int) -> None:
        self.batch = next(iter(shapes.values()))[0]
        self.uses = 0
        self.broken = False
        self._device = device
        self._graphs = graphs
        self._memory = DeviceBuffers(device)
        self._step: EngineContext | None = None
        self._steps: dict[tuple[int, int], _Places] = {}
        try:
            self._allocate(shapes, steps)
            self._step = self._step_context()
            self._step.enqueue()  # an engine's first run with a shape cannot be recorded
            device.synchronize()
        except BaseException:
            self.close()
            raise

    @property
    def nbytes(self) -> int:
        """Memory of the device that it holds."""
        return self._memory.nbytes + (self._step.nbytes if self._step is not None else 0)

    def _allocate(self, shapes: Shapes, steps: int) -> None:
        graphs, memory = self._graphs, self._memory
        encoder, step = graphs.encoder, graphs.step
        graphs.encoder_context.set_shapes(shapes)
        self._shapes = dict(shapes)
        self._inputs = {
            name: (memory.allocate_host(nbytes), memory.allocate(nbytes))
            for name, nbytes in _sizes(encoder, shapes)
        }
        encoded = {name: graphs.encoder_context.shape(name) for name in encoder.outputs}
        names = cache_names(step)
        own = {name: (self.batch, *step.inputs[name].shape[1:]) for name in names}
        self._cache_shapes = {name: encoded.get(name, own[name]) for name in names}
        self.caches = DeviceCaches(self._device, memory, step, self._cache_shapes)
        self._encoded = {
            name: self.caches.first(name) if name in names else memory.allocate(nbytes)
            for name, nbytes in _sizes(encoder, encoded)
        }
        self._memory_shapes = {n: s for n, s in encoded.items() if n not in names}
        self.ring = TokenRing(self._device, memory, self.batch, steps)
        tokens = self.batch * graphs.capacity * np.dtype(np.int64).itemsize
        self._prompt = memory.allocate_host(tokens), memory.allocate(tokens)
        last = self.ring.first_position.nbytes
        self._last = memory.allocate_host(last), memory.allocate(last)

    def _step_context(self) -> EngineContext:
        """Makes a context of its own: a recorded graph keeps pointing into it."""
        step = self._graphs.step
        context = step.context()
        try:
            context.set_shapes(self._step_shapes())
            self._results = {
                name: self._result(name, context)
                for name in step.outputs
                if not is_next_cache(name) and name not in (NEXT_TOKEN, NEXT_POSITION, SCORE)
            }
            self._bind_fixed(context, step)
            _bind(context, self._places(step, 0, side=0))
        except BaseException:
            context.close()
            raise
        return context

    def _result(self, name: str, context: EngineContext) -> tuple[HostBuffer, Buffer, Any]:
        shape, dtype = context.shape(name), self._graphs.step.outputs[name].dtype
        nbytes = int(np.prod(shape)) * BYTES[dtype]
        host = self._memory.allocate_host(nbytes)
        return host, self._memory.allocate(nbytes), (np.dtype(dtype), shape)

    def _step_shapes(self) -> Shapes:
        given = {TOKEN: (self.batch,), POSITION: (self.batch,)}
        known = given | self._memory_shapes | self._cache_shapes
        return {name: known[name] for name in self._graphs.step.inputs}

    def _bind_fixed(self, context: EngineContext, engine: Engine) -> None:
        """Binds what lies at the same place in every run."""
        for name, buffer in self._encoded.items():
            if name in engine.inputs and name in self._memory_shapes:
                context.bind(name, buffer)
        for name in engine.outputs:
            if name in self._results:
                context.bind(name, self._results[name][1])

    def _places(self, engine: Engine, slot: int, side: int) -> _Places:
        """Returns what a run reads from a slot, what it writes to the next, and the caches."""
        ring = self.ring
        places = {
            TOKEN: ring.tokens[slot],
            POSITION: ring.positions[slot],
            NEXT_TOKEN: ring.tokens[slot + 1],
            NEXT_POSITION: ring.positions[slot + 1],
            SCORE: ring.scores[slot],
        }
        known = [(n, b) for n, b in places.items() if n in engine.inputs or n in engine.outputs]
        return (*known, *self.caches.places(side))

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Begins a batch: empties the caches and asks for the encoder."""
        self.uses += 1
        self.caches.clear()
        context = self._graphs.encoder_context
        context.set_shapes(self._shapes)
        for name, (host, buffer) in self._inputs.items():
            host.fill(inputs[name])
            self._device.upload(buffer, host)
            context.bind(name, buffer)
        for name, buffer in self._encoded.items():
            context.bind(name, buffer)
        context.enqueue()

    def enqueue_step(self, slot: int, side: int) -> None:
        """Asks for a step from a slot of the ring to the next, reading one side of the caches."""
        assert self._step is not None
        if (slot, side) not in self._steps:
            self._steps[slot, side] = self._places(self._graphs.step, slot, side)
        _bind(self._step, self._steps[slot, side])
        self._step.enqueue()

    def capture_obstacle(self) -> str | None:
        """Says why steps cannot be recorded; None where nothing is known against it."""
        assert self._step is not None
        return self._step.capture_obstacle()

    def enqueue_prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> None:
        """Asks for prompts (batch, length) to be decoded, from these positions on."""
        context, prefill = self._graphs.prefill_context, self._graphs.prefill
        assert context is not None and prefill is not None
        known = {TOKENS: tokens.shape, POSITION: last.shape, LAST: last.shape}
        shapes = self._memory_shapes | self._cache_shapes | known
        context.set_shapes({name: shapes[name] for name in prefill.inputs})
        self.ring.begin(tokens[:, 0], position)
        places = {TOKENS: (self._prompt, tokens), LAST: (self._last, last)}
        for name, ((host, buffer), array) in places.items():
            if name in prefill.inputs:
                host.fill(array)
                self._device.upload(buffer.part(0, array.nbytes), host)
                context.bind(name, buffer)
        self._bind_fixed(context, prefill)
        _bind(context, self._places(prefill, 0, self.caches.side))
        context.enqueue()

    def fetch(self) -> dict[str, NDArray[Any]]:
        """Waits for logits and further heads of the newest run, valid until the next one.

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
        """Frees every buffer; a device that has failed may fail again, which is ignored."""
        with suppress(BackendError):
            self._device.synchronize()
        if self._step is not None:
            self._step.close()
            self._step = None
        self._memory.close()


def _bind(context: EngineContext, places: _Places) -> None:
    for name, buffer in places:
        context.bind(name, buffer)


def _sizes(engine: Engine, shapes: Shapes) -> Iterable[tuple[str, int]]:
    """Yields the bytes of tensors of an engine that have these shapes."""
    tensors = {**engine.inputs, **engine.outputs}
    for name, shape in shapes.items():
        yield name, int(np.prod(shape)) * BYTES[tensors[name].dtype]

"""The caches and recurrent states of a batch on a device, and the buffers that the next run reads.

An engine that writes a cache in place needs one buffer for it. Other caches, and recurrent states,
have two: a run reads one of them and writes the other, the next run the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from hybrid_deploy.contract import cache_of, is_next_cache, is_recurrent, next_cache
from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.gpu.buffers import DeviceBuffers
from hybrid_deploy.runtime.backends.gpu.device import Buffer, Device
from hybrid_deploy.runtime.backends.gpu.engine import BYTES, Engine
from hybrid_deploy.runtime.backends.protocol import IntArray


def cache_names(step: Engine) -> tuple[str, ...]:
    """Returns the names of the caches and recurrent states of a step engine."""
    return tuple(cache_of(name) for name in step.outputs if is_next_cache(name))


@dataclass(frozen=True)
class _Cache:
    """The buffers of one cache or recurrent state.

    Attributes:
        buffers: one buffer if the engine writes the cache in place, else two.
        rows: for each buffer, its part of each sequence.
        recurrent: whether it is a recurrent state.
    """

    buffers: tuple[Buffer, ...]
    rows: tuple[tuple[Buffer, ...], ...]
    recurrent: bool


class DeviceCaches:
    """All caches and recurrent states of a batch.

    Attributes:
        read_index: index of the buffer that the next run reads, 0 or 1, for caches with two.
        buffer_count: largest number of buffers of a cache: 1 if all are written in place, else 2.

    Args:
        device: the opened device.
        buffers: allocates and owns the buffers of the caches.
        step: the step engine, which names the caches that are written in place.
        shapes: shape of each cache and recurrent state by name, batch first.
    """

    def __init__(
        self,
        device: Device,
        buffers: DeviceBuffers,
        step: Engine,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._device = device
        self._caches: dict[str, _Cache] = {}
        for name, shape in shapes.items():
            in_place = step.aliases.get(next_cache(name)) == name
            nbytes = int(np.prod(shape)) * BYTES[step.inputs[name].dtype]
            cache_buffers = tuple(buffers.allocate(nbytes) for _ in range(1 if in_place else 2))
            rows = tuple(_rows(buffer, shape[0]) for buffer in cache_buffers)
            self._caches[name] = _Cache(cache_buffers, rows, is_recurrent(name))
        sizes = [c.buffers[0].nbytes for c in self._caches.values() if len(c.buffers) == 1]
        self._scratch = buffers.allocate(max(sizes)) if sizes else None
        self.buffer_count = max((len(cache.buffers) for cache in self._caches.values()), default=1)
        self.read_index = 0

    def clear(self) -> None:
        """Fills with zeros what the first run of the next batch reads."""
        self.read_index = 0
        for cache in self._caches.values():
            self._device.zero(cache.buffers[0])

    def first_buffer(self, name: str) -> Buffer:
        """Returns the buffer of a cache that the first run of a batch reads."""
        return self._caches[name].buffers[0]

    def bindings(self, read_index: int) -> Iterator[tuple[str, Buffer]]:
        """Yields the name and buffer of every cache input and output of a run.

        Args:
            read_index: index of the buffer that the run reads; it writes the other one.
        """
        for name, cache in self._caches.items():
            yield name, cache.buffers[read_index % len(cache.buffers)]
            yield next_cache(name), cache.buffers[(read_index + 1) % len(cache.buffers)]

    def advance(self, runs: int) -> None:
        """Counts runs that were enqueued, so that the next one reads what the last one wrote."""
        self.read_index = (self.read_index + runs) % self.buffer_count

    def undo_run(self, rows: IntArray) -> None:
        """Restores the recurrent states from before the newest run.

        Args:
            rows: indexes of the sequences to restore, (any number,) int64.
        """
        for cache in self._caches.values():
            if cache.recurrent:
                for row in rows:
                    target = cache.rows[self.read_index][row]
                    self._device.copy(target, cache.rows[1 - self.read_index][row])

    def reorder(self, rows: IntArray) -> None:
        """Copies caches and states between sequences: sequence i continues from rows[i].

        Args:
            rows: source of each sequence, (batch,) int64.
        """
        if np.array_equal(rows, np.arange(len(rows))):
            return
        for cache in self._caches.values():
            if len(cache.buffers) == 1:
                self._reorder_in_place(cache, rows)
            else:
                for target, row in zip(cache.rows[1 - self.read_index], rows, strict=True):
                    self._device.copy(target, cache.rows[self.read_index][row])
        self.advance(1)

    def _reorder_in_place(self, cache: _Cache, rows: IntArray) -> None:
        (buffer,), (sources,) = cache.buffers, cache.rows
        assert self._scratch is not None
        scratch = self._scratch.part(0, buffer.nbytes)
        for target, row in zip(_rows(scratch, len(rows)), rows, strict=True):
            self._device.copy(target, sources[row])
        self._device.copy(buffer, scratch)


def check_caches(step: Engine, prefill: Engine | None) -> None:
    """Checks that a step engine takes its caches, and that both engines write them the same way.

    Raises:
        BackendError: a cache output has no input, is written over another input, or is written in
            place by one engine only.
    """
    for name in cache_names(step):
        if name not in step.inputs:
            raise BackendError(f"the step engine returns {next_cache(name)} and takes no {name}")
        output = next_cache(name)
        if step.aliases.get(output, name) != name:
            raise BackendError(f"the step engine writes {output} over {step.aliases[output]}")
        if prefill is not None and prefill.aliases.get(output) != step.aliases.get(output):
            raise BackendError(
                f"the prefill engine writes {name} in place and the step engine does not, or the "
                "other way round; build both again with the same TensorRT"
            )


def _rows(buffer: Buffer, batch: int) -> tuple[Buffer, ...]:
    """Returns the equal parts of a buffer, one per sequence."""
    size = buffer.nbytes // batch
    return tuple(buffer.part(row * size, size) for row in range(batch))

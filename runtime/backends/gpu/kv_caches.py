"""The caches of a batch on a device, and which of their buffers the next run reads."""

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
    """Names what a step reads and returns anew."""
    return tuple(cache_of(name) for name in step.outputs if is_next_cache(name))


@dataclass(frozen=True)
class _Cache:
    """One cache: a buffer that is written in place, or two that are used in turn."""

    sides: tuple[Buffer, ...]
    rows: tuple[tuple[Buffer, ...], ...]
    carried: bool


class DeviceCaches:
    """All caches of a batch.

    Attributes:
        side: which buffer the next run reads, of those that are used in turn.
        sides: how many ways there are to bind them: 1 if all are written in place, or 2.
    """

    def __init__(
        self,
        device: Device,
        memory: DeviceBuffers,
        step: Engine,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._device = device
        self._caches: dict[str, _Cache] = {}
        for name, shape in shapes.items():
            in_place = step.aliases.get(next_cache(name)) == name
            nbytes = int(np.prod(shape)) * BYTES[step.inputs[name].dtype]
            sides = tuple(memory.allocate(nbytes) for _ in range(1 if in_place else 2))
            rows = tuple(_rows(side, shape[0]) for side in sides)
            self._caches[name] = _Cache(sides, rows, is_recurrent(name))
        in_place_sizes = [c.sides[0].nbytes for c in self._caches.values() if len(c.sides) == 1]
        self._scratch = memory.allocate(max(in_place_sizes)) if in_place_sizes else None
        self.sides = max((len(cache.sides) for cache in self._caches.values()), default=1)
        self.side = 0

    def clear(self) -> None:
        """Empties what the next batch will read."""
        self.side = 0
        for cache in self._caches.values():
            self._device.zero(cache.sides[0])

    def first(self, name: str) -> Buffer:
        """Returns what the first run of a batch reads."""
        return self._caches[name].sides[0]

    def places(self, side: int) -> Iterator[tuple[str, Buffer]]:
        """Yields inputs and outputs of a run that reads `side` and writes the other one."""
        for name, cache in self._caches.items():
            yield name, cache.sides[side % len(cache.sides)]
            yield next_cache(name), cache.sides[(side + 1) % len(cache.sides)]

    def advance(self, runs: int) -> None:
        """Notes that so many runs have been asked for."""
        self.side = (self.side + runs) % self.sides

    def take_back(self, rows: IntArray) -> None:
        """Undoes the newest run for these sequences, in what is carried from step to step."""
        for cache in self._caches.values():
            if cache.carried:
                for row in rows:
                    target = cache.rows[self.side][row]
                    self._device.copy(target, cache.rows[1 - self.side][row])

    def reorder(self, rows: IntArray) -> None:
        """Makes row i of everything what row rows[i] was."""
        if np.array_equal(rows, np.arange(len(rows))):
            return
        for cache in self._caches.values():
            if len(cache.sides) == 1:
                self._reorder_in_place(cache, rows)
            else:
                for target, row in zip(cache.rows[1 - self.side], rows, strict=True):
                    self._device.copy(target, cache.rows[self.side][row])
        self.advance(1)

    def _reorder_in_place(self, cache: _Cache, rows: IntArray) -> None:
        (whole,), (old,) = cache.sides, cache.rows
        assert self._scratch is not None
        scratch = self._scratch.part(0, whole.nbytes)
        for target, row in zip(_rows(scratch, len(rows)), rows, strict=True):
            self._device.copy(target, old[row])
        self._device.copy(whole, scratch)


def check_caches(step: Engine, prefill: Engine | None) -> None:
    """Checks that both engines treat the caches alike.

    Raises:
        BackendError: they do not.
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
    size = buffer.nbytes // batch
    return tuple(buffer.part(row * size, size) for row in range(batch))

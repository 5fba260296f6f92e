"""Where the tokens of a block lie on a device: step k reads slot k and writes slot k + 1."""

from __future__ import annotations

import numpy as np

from hybrid_deploy.runtime.backends.gpu.buffers import DeviceBuffers
from hybrid_deploy.runtime.backends.gpu.device import Buffer, Device, aligned
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray

_SIDES = 2
_INT64, _FLOAT32 = np.dtype(np.int64), np.dtype(np.float32)


class TokenRing:
    """Slots for the tokens, positions and scores of `steps` steps, each (batch,).

    One buffer holds, in this order, position 0, token 0, tokens 1 to n, scores 0 to n - 1 and
    positions 1 to n: what comes from the host lies together, and so does what goes there. Every
    slot is aligned. Blocks go to two buffers of the host in turn.
    """

    def __init__(self, device: Device, memory: DeviceBuffers, batch: int, steps: int) -> None:
        self.steps = steps
        self._device = device
        self._batch = batch
        slot, score = aligned(batch * _INT64.itemsize), aligned(batch * _FLOAT32.itemsize)
        self._slot, self._score = slot, score
        made = steps * (slot + score)
        self._buffer = memory.allocate(2 * slot + made + steps * slot)
        self._first = self._buffer.part(0, 2 * slot)
        self._made = self._buffer.part(2 * slot, made)
        ints = batch * _INT64.itemsize
        self.tokens = [self._buffer.part((1 + k) * slot, ints) for k in range(steps + 1)]
        later = (self._buffer.part(2 * slot + made + k * slot, ints) for k in range(steps))
        self.positions = [self._buffer.part(0, ints), *later]
        self.scores = [
            self._made.part(steps * slot + k * score, batch * _FLOAT32.itemsize)
            for k in range(steps)
        ]
        self._given = memory.allocate_host(2 * slot)
        self._taken = [memory.allocate_host(made) for _ in range(_SIDES)]
        self._events = [device.event() for _ in range(_SIDES)]

    @property
    def first_position(self) -> Buffer:
        """Where `begin` puts the positions, (batch,) int64."""
        return self.positions[0]

    def begin(self, token: IntArray, position: IntArray) -> None:
        """Puts tokens and their positions, (batch,) each, into slot 0."""
        given = np.zeros((2, self._slot // _INT64.itemsize), np.int64)
        given[:, : self._batch] = position, token
        self._given.fill(given)
        self._device.upload(self._first, self._given)

    def wrap(self) -> None:
        """Makes the last slot the first: the next block goes on from there."""
        self._device.copy(self.tokens[0], self.tokens[-1])
        self._device.copy(self.positions[0], self.positions[-1])

    def send(self, side: int) -> None:
        """Asks for the tokens and scores of all steps to be copied to a buffer of the host."""
        self._device.download(self._taken[side], self._made)
        self._events[side].record()

    def receive(self, side: int, count: int) -> tuple[IntArray, FloatArray]:
        """Waits for what was sent, and gives tokens and scores (count, batch) of the first steps.

        Raises:
            BackendError: the device failed.
        """
        self._events[side].wait()
        taken = self._taken[side]
        ints = (self.steps, self._slot // _INT64.itemsize)
        floats = (self.steps, self._score // _FLOAT32.itemsize)
        tokens = taken.view(_INT64, ints)[:count, : self._batch]
        scores = taken.view(_FLOAT32, floats, self.steps * self._slot)[:count, : self._batch]
        return tokens.copy(), scores.copy()

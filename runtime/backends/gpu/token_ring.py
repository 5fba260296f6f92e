"""The tokens of a block of steps on a device: step k reads slot k and writes slot k + 1."""

from __future__ import annotations

import numpy as np

from hybrid_deploy.runtime.backends.gpu.buffers import DeviceBuffers
from hybrid_deploy.runtime.backends.gpu.device import Buffer, Device, aligned
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray

_HOST_BUFFERS = 2
_INT64, _FLOAT32 = np.dtype(np.int64), np.dtype(np.float32)


class TokenRing:
    """Slots for the tokens, positions and scores of the steps of one block.

    One buffer holds, in this order: position 0, token 0, tokens 1 to n, scores 0 to n - 1,
    positions 1 to n. So one copy uploads slot 0, and one copy downloads all tokens and scores.
    Every slot is aligned. The downloads of successive blocks go to two host buffers in turn.

    Attributes:
        steps: number of steps of a block, n.
        tokens: buffer of each slot's token, n + 1 buffers of (batch,) int64.
        positions: buffer of each slot's position, n + 1 buffers of (batch,) int64.
        scores: buffer of each step's score, n buffers of (batch,) float32.
    """

    def __init__(self, device: Device, buffers: DeviceBuffers, batch: int, steps: int) -> None:
        self.steps = steps
        self._device = device
        self._batch = batch
        slot, score = aligned(batch * _INT64.itemsize), aligned(batch * _FLOAT32.itemsize)
        self._slot_bytes, self._score_bytes = slot, score
        results = steps * (slot + score)
        self._buffer = buffers.allocate(2 * slot + results + steps * slot)
        self._first_slot = self._buffer.part(0, 2 * slot)
        self._results = self._buffer.part(2 * slot, results)
        ints = batch * _INT64.itemsize
        self.tokens = [self._buffer.part((1 + k) * slot, ints) for k in range(steps + 1)]
        later = (self._buffer.part(2 * slot + results + k * slot, ints) for k in range(steps))
        self.positions = [self._buffer.part(0, ints), *later]
        self.scores = [
            self._results.part(steps * slot + k * score, batch * _FLOAT32.itemsize)
            for k in range(steps)
        ]
        self._host_first_slot = buffers.allocate_host(2 * slot)
        self._host_results = [buffers.allocate_host(results) for _ in range(_HOST_BUFFERS)]
        self._events = [device.event() for _ in range(_HOST_BUFFERS)]

    @property
    def first_position(self) -> Buffer:
        """The buffer into which `begin` puts the positions, (batch,) int64."""
        return self.positions[0]

    def begin(self, token: IntArray, position: IntArray) -> None:
        """Enqueues the upload of tokens and positions to slot 0.

        Args:
            token: newest token of each sequence, (batch,) int64.
            position: position of that token, (batch,) int64.
        """
        first_slot = np.zeros((2, self._slot_bytes // _INT64.itemsize), np.int64)
        first_slot[:, : self._batch] = position, token
        self._host_first_slot.fill(first_slot)
        self._device.upload(self._first_slot, self._host_first_slot)

    def wrap(self) -> None:
        """Enqueues the copy of the last slot to slot 0, where the next block starts."""
        self._device.copy(self.tokens[0], self.tokens[-1])
        self._device.copy(self.positions[0], self.positions[-1])

    def send(self, host_index: int) -> None:
        """Enqueues the download of the tokens and scores of all steps.

        Args:
            host_index: index of the host buffer that receives them, 0 or 1.
        """
        self._device.download(self._host_results[host_index], self._results)
        self._events[host_index].record()

    def receive(self, host_index: int, count: int) -> tuple[IntArray, FloatArray]:
        """Waits for a download, and returns the tokens and scores of its first steps.

        Args:
            host_index: the index that `send` was called with.
            count: number of steps to return.

        Returns:
            Tokens (count, batch) int64 and scores (count, batch) float32; copies that the caller
            owns.

        Raises:
            BackendError: the device failed.
        """
        self._events[host_index].wait()
        results = self._host_results[host_index]
        ints = (self.steps, self._slot_bytes // _INT64.itemsize)
        floats = (self.steps, self._score_bytes // _FLOAT32.itemsize)
        tokens = results.view(_INT64, ints)[:count, : self._batch]
        scores = results.view(_FLOAT32, floats, self.steps * self._slot_bytes)
        return tokens.copy(), scores[:count, : self._batch].copy()

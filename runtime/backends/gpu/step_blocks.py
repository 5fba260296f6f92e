"""Greedy decoding on the device, in blocks of steps.

Each step feeds its token to the next one on the device. One CUDA graph records a whole block.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress

import numpy as np

from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.gpu.device import CapturedGraph, CaptureError, Device
from hybrid_deploy.runtime.backends.gpu.workspace import Workspace
from hybrid_deploy.runtime.backends.protocol import IntArray, LaunchMode, StepBlock


class StepBlockLoop:
    """The greedy loop of one workspace; it keeps its CUDA graphs for the workspace's next batches.

    The caches may have two buffers, so there is one CUDA graph for each buffer that the first step
    of a block may read.
    """

    def __init__(self, device: Device, workspace: Workspace) -> None:
        self._device = device
        self._workspace = workspace
        self._captured: dict[int, CapturedGraph] = {}
        self._reason: str | None = None

    def blocks(
        self, token: IntArray, position: IntArray, capacity: int
    ) -> Generator[StepBlock, None, None]:
        """Yields blocks of tokens; the last block ends at the capacity of the caches.

        Args:
            token: newest token of each sequence, (batch,) int64.
            position: position of that token, (batch,) int64.
            capacity: number of token positions in a cache.

        Raises:
            BackendError: the device failed.
        """
        ring, done = self._workspace.ring, 0
        remaining = capacity - int(position.min())
        if remaining <= 0:
            return
        ring.begin(token, np.minimum(position, capacity - 1))
        self._launch(0, done)
        host_index = 0
        while remaining > 0:
            if remaining > ring.steps:
                self._launch(1 - host_index, done + ring.steps)
            count = min(remaining, ring.steps)
            try:
                tokens, scores = ring.receive(host_index, count)
            except BackendError as error:
                raise BackendError(f"{error} (in tokens {done} to {done + count - 1})") from error
            run: LaunchMode = "graph" if self._reason is None else "enqueue"
            yield StepBlock(tokens, scores, run, self._reason)
            remaining, done, host_index = remaining - count, done + count, 1 - host_index

    def _launch(self, host_index: int, first_token: int) -> None:
        """Enqueues the steps of one block, and the download of its tokens to a host buffer."""
        workspace = self._workspace
        captured = self._captured_graph(workspace.caches.read_index)
        if captured is not None:
            captured.launch()
        else:
            self._enqueue(workspace.caches.read_index, first_token)
        workspace.caches.advance(workspace.ring.steps)
        workspace.ring.send(host_index)

    def _captured_graph(self, read_index: int) -> CapturedGraph | None:
        """Returns the CUDA graph whose first step reads the buffers of that index.

        None if steps cannot be recorded.
        """
        if self._reason is None and read_index not in self._captured:
            self._reason = self._workspace.capture_obstacle()
            if self._reason is None:
                try:
                    self._captured[read_index] = self._device.capture(
                        lambda: self._enqueue(read_index, 0)
                    )
                except CaptureError as error:
                    self._reason = str(error)
        return None if self._reason is not None else self._captured[read_index]

    def _enqueue(self, read_index: int, first_token: int) -> None:
        workspace = self._workspace
        for step in range(workspace.ring.steps):
            try:
                workspace.enqueue_step(step, (read_index + step) % workspace.caches.buffer_count)
            except BackendError as error:
                raise BackendError(f"{error} (at token {first_token + step})") from error
        workspace.ring.wrap()

    def close(self) -> None:
        """Frees the CUDA graphs; call it before `Workspace.close`, as they use its buffers."""
        with suppress(BackendError):
            self._device.synchronize()
        self._captured.clear()

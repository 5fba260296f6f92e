"""Greedy decoding on the device: blocks of steps that feed each other, recorded as one graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.gpu.device import CaptureError, Device, Graph
from hybrid_deploy.runtime.backends.gpu.workspace import Workspace
from hybrid_deploy.runtime.backends.protocol import IntArray, Run, StepBlock


class StepBlockLoop:
    """The loop of one workspace; recorded graphs are kept for its next batches."""

    def __init__(self, device: Device, workspace: Workspace) -> None:
        self._device = device
        self._workspace = workspace
        self._graphs: dict[int, Graph] = {}
        self._reason: str | None = None

    def blocks(self, token: IntArray, position: IntArray, capacity: int) -> Iterator[StepBlock]:
        """Yields blocks; the last has the tokens up to the capacity of the caches.

        Raises:
            BackendError: the device failed.
        """
        ring, made = self._workspace.ring, 0
        left = capacity - int(position.min())
        if left <= 0:
            return
        ring.begin(token, np.minimum(position, capacity - 1))
        self._launch(0, made)
        side = 0
        while left > 0:
            if left > ring.steps:
                self._launch(1 - side, made + ring.steps)
            count = min(left, ring.steps)
            try:
                tokens, scores = ring.receive(side, count)
            except BackendError as error:
                raise BackendError(f"{error} (in tokens {made} to {made + count - 1})") from error
            run: Run = "graph" if self._reason is None else "enqueue"
            yield StepBlock(tokens, scores, run, self._reason)
            left, made, side = left - count, made + count, 1 - side

    def _launch(self, side: int, first: int) -> None:
        """Asks for the steps of one block, and for its tokens to be copied to the host."""
        workspace = self._workspace
        graph = self._graph(workspace.caches.side)
        if graph is not None:
            graph.launch()
        else:
            self._enqueue(workspace.caches.side, first)
        workspace.caches.advance(workspace.ring.steps)
        workspace.ring.send(side)

    def _graph(self, start: int) -> Graph | None:
        """Returns the recorded steps that begin with this side of the caches, None without."""
        if self._reason is None and start not in self._graphs:
            self._reason = self._workspace.capture_obstacle()
            if self._reason is None:
                try:
                    self._graphs[start] = self._device.capture(lambda: self._enqueue(start, 0))
                except CaptureError as error:
                    self._reason = str(error)
        return None if self._reason is not None else self._graphs[start]

    def _enqueue(self, start: int, first: int) -> None:
        workspace = self._workspace
        for step in range(workspace.ring.steps):
            try:
                workspace.enqueue_step(step, (start + step) % workspace.caches.sides)
            except BackendError as error:
                raise BackendError(f"{error} (at token {first + step})") from error
        workspace.ring.wrap()

    def close(self) -> None:
        """Forgets the recorded graphs, before the workspace that they point into goes."""
        with suppress(BackendError):
            self._device.synchronize()
        self._graphs.clear()

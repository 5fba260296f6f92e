"""One batch on a device: its memory and caches stay there, tokens and logits come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.contract import LOGITS
from hybrid_deploy.errors import BackendError, UsageError
from hybrid_deploy.runtime.backends.gpu.device import Device
from hybrid_deploy.runtime.backends.gpu.engine_set import EngineSet
from hybrid_deploy.runtime.backends.gpu.step_blocks import StepBlockLoop
from hybrid_deploy.runtime.backends.gpu.workspace import Workspace
from hybrid_deploy.runtime.backends.prefill_by_steps import prefill_by_steps
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray, StepBlock


class DeviceDecoding:
    """A started batch; it ends when the backend starts another one of the same shapes.

    Attributes:
        batch: how many sequences are decoded.
        resizable: it keeps that number, so that no beam search begins with it.
        heads: what further heads of the decoder gave last, (batch, width) each, by name.
    """

    def __init__(
        self, device: Device, graphs: EngineSet, workspace: Workspace, loop: StepBlockLoop
    ) -> None:
        self.batch = workspace.batch
        self.resizable = False
        self.heads: Mapping[str, NDArray[Any]] = {}
        self._device = device
        self._graphs = graphs
        self._workspace = workspace
        self._loop = loop
        self._use = workspace.uses

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        """Decodes several tokens per sequence."""
        if self._graphs.prefill is None:
            take_back = self._workspace.caches.take_back
            return prefill_by_steps(self.step, take_back, tokens, position, last)
        with self._failing("the prefill graph"):
            self._workspace.enqueue_prefill(tokens, position, last)
            self._workspace.caches.advance(1)
            return self._results()

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        """Decodes one token per sequence."""
        with self._failing("the step graph"):
            self._workspace.ring.begin(token, position)
            self._workspace.enqueue_step(0, self._workspace.caches.side)
            self._workspace.caches.advance(1)
            return self._results()

    def step_blocks(self, token: IntArray, position: IntArray) -> Iterator[StepBlock]:
        """Decodes greedily from `token` at `position`, (batch,) each, without the host."""
        blocks = self._loop.blocks(token, position, self._graphs.capacity)
        while True:
            with self._failing("the step graph"):
                block = next(blocks, None)
            if block is None:
                return
            yield block

    def reorder(self, rows: IntArray) -> None:
        """Makes row i of every cache what row rows[i] was."""
        with self._failing("reordering the caches"):
            self._workspace.caches.reorder(rows)

    def select(self, rows: IntArray) -> DeviceDecoding:
        """Returns the decoding of all sequences in their order: of no others, memory stays.

        Raises:
            UsageError: `rows` leaves one out, doubles one or changes their order.
        """
        if not np.array_equal(rows, np.arange(self.batch)):
            raise UsageError(
                f"{self._device.name} decodes the {self.batch} sequences that it began with; ask "
                "for one beam, or take --backend onnxruntime"
            )
        return self

    def expand_beams(self, count: int) -> DeviceDecoding:
        """Returns the decoding of one beam for each sequence: of no more, memory stays.

        Raises:
            UsageError: more are wanted.
        """
        return self.select(np.repeat(np.arange(self.batch), count))

    def _results(self) -> FloatArray:
        results = self._workspace.fetch()
        logits: FloatArray = results.pop(LOGITS)
        self.heads = results
        return logits

    @contextmanager
    def _failing(self, where: str) -> Iterator[None]:
        """Marks the workspace as broken where something fails in it."""
        if self._use != self._workspace.uses:
            raise BackendError("this batch is over: another one was started; start it again")
        self._device.use()
        try:
            yield
        except BackendError as error:
            self._workspace.broken = True
            raise BackendError(f"{self._device.name} failed in {where}: {error}") from error

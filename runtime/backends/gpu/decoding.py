"""The decoding of one batch on a device.

Memory and caches stay on the device; tokens and logits are copied to the host.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
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
    """The decoding of a batch; it is over when its workspace serves another or is closed.

    Attributes:
        batch: number of sequences.
        resizable: False; the buffers on the device have a fixed number of sequences.
        heads: outputs of the decoder's further heads in the newest run, by name, (batch, width)
            each; valid until the next call.
    """

    def __init__(
        self, device: Device, engines: EngineSet, workspace: Workspace, loop: StepBlockLoop
    ) -> None:
        self.batch = workspace.batch
        self.resizable = False
        self.heads: Mapping[str, NDArray[Any]] = {}
        self._device = device
        self._engines = engines
        self._workspace = workspace
        self._loop = loop
        self._use = workspace.uses

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        """Decodes several tokens per sequence; see `Decoding.prefill`."""
        if self._engines.prefill is None:
            undo_step = self._workspace.caches.undo_run
            return prefill_by_steps(self.step, undo_step, tokens, position, last)
        with self._errors("the prefill graph"):
            self._workspace.enqueue_prefill(tokens, position, last)
            self._workspace.caches.advance(1)
            return self._fetch_logits()

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        """Decodes one token per sequence; see `Decoding.step`."""
        with self._errors("the step graph"):
            self._workspace.ring.begin(token, position)
            self._workspace.enqueue_step(0, self._workspace.caches.read_index)
            self._workspace.caches.advance(1)
            return self._fetch_logits()

    def step_blocks(self, token: IntArray, position: IntArray) -> Generator[StepBlock, None, None]:
        """Decodes greedily on the device; see `GeneratesOnDevice.step_blocks`."""
        blocks = self._loop.blocks(token, position, self._engines.capacity)
        while True:
            with self._errors("the step graph"):
                block = next(blocks, None)
            if block is None:
                return
            yield block

    def reorder(self, rows: IntArray) -> None:
        """Copies caches between sequences: sequence i continues from sequence rows[i]."""
        with self._errors("reordering the caches"):
            self._workspace.caches.reorder(rows)

    def select(self, rows: IntArray) -> DeviceDecoding:
        """Returns this decoding; another choice than all sequences in their order is refused.

        Raises:
            UsageError: `rows` leaves out, repeats or reorders sequences.
        """
        if not np.array_equal(rows, np.arange(self.batch)):
            raise UsageError(
                f"{self._device.name} decodes the {self.batch} sequences that it began with; ask "
                "for one beam, or take --backend onnxruntime"
            )
        return self

    def expand_beams(self, count: int) -> DeviceDecoding:
        """Returns this decoding for `count` 1; more beams are refused.

        Raises:
            UsageError: `count` is not 1.
        """
        return self.select(np.repeat(np.arange(self.batch), count))

    def _fetch_logits(self) -> FloatArray:
        results = self._workspace.fetch()
        logits: FloatArray = results.pop(LOGITS)
        self.heads = results
        return logits

    @contextmanager
    def _errors(self, where: str) -> Iterator[None]:
        """Names the failed graph in an error inside, and marks the workspace as broken."""
        if self._use != self._workspace.uses:
            raise BackendError("this batch is over: another one was started; start it again")
        self._device.use()
        try:
            yield
        except BackendError as error:
            self._workspace.broken = True
            raise BackendError(f"{self._device.name} failed in {where}: {error}") from error

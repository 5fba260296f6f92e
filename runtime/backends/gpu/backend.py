"""Runs the engines of one variant on a device, for any device and any library of engines."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.manifest import GraphSpec
from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.gpu.decoding import DeviceDecoding
from hybrid_deploy.runtime.backends.gpu.device import Buffer, Device
from hybrid_deploy.runtime.backends.gpu.encoded_batch import DeviceEncodedBatch
from hybrid_deploy.runtime.backends.gpu.engine_set import EngineSet
from hybrid_deploy.runtime.backends.gpu.step_blocks import StepBlockLoop
from hybrid_deploy.runtime.backends.gpu.workspace import Shapes, Workspace
from hybrid_deploy.runtime.backends.tensor_checks import check_inputs

STEPS = 8
"""Number of tokens that the device decodes in one block, before the host reads them."""

MAX_CACHED_BYTES = 256 << 20
"""Total size in bytes of the cached workspaces above which the least recently used are closed."""

_Key = tuple[tuple[str, tuple[int, ...]], ...]


class DeviceBackend:
    """The engines of one variant on one device.

    It keeps the workspaces of the last used input shapes for later batches.

    Attributes:
        name: name of the backend on the command line.
        version: name and version of the library that runs the engines.

    Args:
        name: name of the backend on the command line.
        version: name and version of the library that runs the engines.
        device: the opened device.
        engines: engines of the variant; the backend owns them and closes their contexts.
        encoder: description of the encoder graph, to check inputs against.
        steps: number of tokens of a block.
        max_cached_bytes: total size in bytes of the cached workspaces; while it is exceeded, the
            least recently used one is closed before a new one is made.
    """

    def __init__(
        self,
        name: str,
        version: str,
        device: Device,
        engines: EngineSet,
        encoder: GraphSpec,
        steps: int = STEPS,
        max_cached_bytes: int = MAX_CACHED_BYTES,
    ) -> None:
        self.name = name
        self.version = version
        self._device = device
        self._engines = engines
        self._encoder = encoder
        self._steps = steps
        self._max_cached_bytes = max_cached_bytes
        self._workspaces: OrderedDict[_Key, tuple[Workspace, StepBlockLoop]] = OrderedDict()

    def start(self, inputs: Mapping[str, NDArray[Any]]) -> DeviceDecoding:
        """Encodes a batch and returns its decoding.

        Raises:
            InputError: the name, type or shape of an input is not what the encoder takes.
            BackendError: the device failed.
        """
        workspace, loop = self._encode(inputs)
        return DeviceDecoding(self._device, self._engines, workspace, loop)

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> DeviceEncodedBatch:
        """Encodes a batch for several decodings; see `KeepsMemory.encode`.

        Raises:
            InputError: the name, type or shape of an input is not what the encoder takes.
            BackendError: the device failed, or has no room for a copy of the memory.
        """
        workspace, _ = self._encode(inputs)
        shapes = {name: array.shape for name, array in inputs.items()}
        return DeviceEncodedBatch(
            self._device,
            workspace.encoded,
            workspace.batch,
            lambda kept: self._resume(shapes, kept),
        )

    def _encode(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[Workspace, StepBlockLoop]:
        """Returns the workspace that holds the encoded batch, and its loop."""
        check_inputs(self._encoder, inputs)
        self._device.use()
        workspace, loop = self._workspace({name: a.shape for name, a in inputs.items()})
        with self._errors(workspace, "the encoder"):
            workspace.encode({name: np.ascontiguousarray(a) for name, a in inputs.items()})
            self._device.synchronize()
        return workspace, loop

    def _resume(self, shapes: Shapes, kept: Mapping[str, Buffer]) -> DeviceDecoding:
        """Returns a decoding of a batch that was encoded before."""
        self._device.use()
        workspace, loop = self._workspace(shapes)
        with self._errors(workspace, "copying the memory"):
            workspace.resume(kept)
            self._device.synchronize()
        return DeviceDecoding(self._device, self._engines, workspace, loop)

    @contextmanager
    def _errors(self, workspace: Workspace, where: str) -> Iterator[None]:
        """Names what failed in an error inside, and marks the workspace as broken."""
        try:
            yield
        except BackendError as error:
            workspace.broken = True
            raise BackendError(f"{self._device.name} failed in {where}: {error}") from error

    def close(self) -> None:
        """Frees all buffers on the device; every decoding is over."""
        self._drop_all()
        self._engines.close()

    def _workspace(self, shapes: Shapes) -> tuple[Workspace, StepBlockLoop]:
        """Returns the workspace of these input shapes and its loop, from the cache or new."""
        key = tuple(sorted(shapes.items()))
        if key in self._workspaces and self._workspaces[key][0].broken:
            self._drop(key)
        if key not in self._workspaces:
            while self._cached_bytes() > self._max_cached_bytes:
                self._drop(next(iter(self._workspaces)))
            workspace = self._new_workspace(shapes)
            self._workspaces[key] = workspace, StepBlockLoop(self._device, workspace)
        self._workspaces.move_to_end(key)
        return self._workspaces[key]

    def _new_workspace(self, shapes: Shapes) -> Workspace:
        """Returns a new workspace; drops all cached ones if the device has no room beside them."""
        try:
            return Workspace(self._device, self._engines, shapes, self._steps)
        except BackendError:
            if not self._workspaces:
                raise
        self._drop_all()
        return Workspace(self._device, self._engines, shapes, self._steps)

    def _cached_bytes(self) -> int:
        return sum(workspace.nbytes for workspace, _ in self._workspaces.values())

    def _drop_all(self) -> None:
        while self._workspaces:
            self._drop(next(iter(self._workspaces)))

    def _drop(self, key: _Key) -> None:
        workspace, loop = self._workspaces.pop(key)
        loop.close()
        workspace.uses += 1  # ends the decodings that still use it
        workspace.close()

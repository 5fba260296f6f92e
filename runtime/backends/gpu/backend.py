"""Runs the engines of one variant on a device, whatever the device and the engines are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.manifest import GraphSpec
from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.gpu.decoding import DeviceDecoding
from hybrid_deploy.runtime.backends.gpu.device import Device
from hybrid_deploy.runtime.backends.gpu.engine_set import EngineSet
from hybrid_deploy.runtime.backends.gpu.step_blocks import StepBlockLoop
from hybrid_deploy.runtime.backends.gpu.workspace import Workspace
from hybrid_deploy.runtime.backends.tensor_checks import check_inputs

STEPS = 8
"""Tokens that are made before the host looks at them."""

KEPT_BYTES = 256 << 20
"""Memory of the device that may lie ready for the shapes of earlier batches."""

_Key = tuple[tuple[str, tuple[int, ...]], ...]


class DeviceBackend:
    """The engines of one variant on one device.

    Attributes:
        name: of the backend.
        version: of the library that made the engines.
    """

    def __init__(
        self,
        name: str,
        version: str,
        device: Device,
        graphs: EngineSet,
        encoder: GraphSpec,
        steps: int = STEPS,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self.name = name
        self.version = version
        self._device = device
        self._graphs = graphs
        self._encoder = encoder
        self._steps = steps
        self._kept_bytes = kept_bytes
        self._workspaces: OrderedDict[_Key, tuple[Workspace, StepBlockLoop]] = OrderedDict()

    def start(self, inputs: Mapping[str, NDArray[Any]]) -> DeviceDecoding:
        """Encodes a batch and makes ready to decode it.

        Raises:
            InputError: an input has another name, type or shape than the encoder takes.
            BackendError: the device failed.
        """
        check_inputs(self._encoder, inputs)
        self._device.use()
        workspace, loop = self._workspace({name: a.shape for name, a in inputs.items()})
        try:
            workspace.encode({name: np.ascontiguousarray(a) for name, a in inputs.items()})
            self._device.synchronize()
        except BackendError as error:
            workspace.broken = True
            raise BackendError(f"{self._device.name} failed in the encoder: {error}") from error
        return DeviceDecoding(self._device, self._graphs, workspace, loop)

    def close(self) -> None:
        """Returns the memory of the device back; decodings are over."""
        self._drop_all()
        self._graphs.close()

    def _workspace(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Workspace, StepBlockLoop]:
        key = tuple(sorted(shapes.items()))
        if key in self._workspaces and self._workspaces[key][0].broken:
            self._drop(key)
        if key not in self._workspaces:
            while sum(kept.nbytes for kept, _ in self._workspaces.values()) > self._kept_bytes:
                self._drop(next(iter(self._workspaces)))
            workspace = self._new_workspace(shapes)
            self._workspaces[key] = workspace, StepBlockLoop(self._device, workspace)
        self._workspaces.move_to_end(key)
        return self._workspaces[key]

    def _new_workspace(self, shapes: Mapping[str, tuple[int, ...]]) -> Workspace:
        """Makes a workspace; where memory does not suffice, in place of all the others."""
        try:
            return Workspace(self._device, self._graphs, shapes, self._steps)
        except BackendError:
            if not self._workspaces:
                raise
        self._drop_all()
        return Workspace(self._device, self._graphs, shapes, self._steps)

    def _drop_all(self) -> None:
        while self._workspaces:
            self._drop(next(iter(self._workspaces)))

    def _drop(self, key: _Key) -> None:
        workspace, loop = self._workspaces.pop(key)
        loop.close()
        workspace.uses += 1  # decodings that still use it are over
        workspace.close()

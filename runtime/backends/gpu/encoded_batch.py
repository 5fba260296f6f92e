"""What the encoder returned for one batch on a device, kept for several decodings.

The workspace that encoded the batch serves other batches of the same shapes, so the encoder's
outputs are copied on the device: once to keep them, and back for each decoding.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress

from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.gpu.buffers import DeviceBuffers
from hybrid_deploy.runtime.backends.gpu.decoding import DeviceDecoding
from hybrid_deploy.runtime.backends.gpu.device import Buffer, Device


class DeviceEncodedBatch:
    """Copies of the encoder's outputs for one batch; they are freed when the object is.

    Attributes:
        batch: number of sequences.

    Args:
        device: the opened device.
        encoded: buffers that the encoder has written, by name.
        batch: number of sequences.
        resume: returns a decoding of the batch, given the copies by name.
    """

    def __init__(
        self,
        device: Device,
        encoded: Mapping[str, Buffer],
        batch: int,
        resume: Callable[[Mapping[str, Buffer]], DeviceDecoding],
    ) -> None:
        self.batch = batch
        self._resume = resume
        buffers = DeviceBuffers(device)
        self._free = weakref.finalize(self, _free, device, buffers)
        self._free.atexit = False  # the driver frees everything when the process ends
        self._kept = {name: buffers.allocate(buffer.nbytes) for name, buffer in encoded.items()}
        for name, buffer in encoded.items():
            device.copy(self._kept[name], buffer)
        device.synchronize()

    def start(self) -> DeviceDecoding:
        """Returns a new decoding; another decoding of inputs of these shapes is over.

        Raises:
            BackendError: the batch is closed, or the device failed.
        """
        if not self._free.alive:
            raise BackendError("this encoded input is closed; encode the input again")
        return self._resume(self._kept)

    def close(self) -> None:
        """Frees the copies."""
        self._free()


def _free(device: Device, buffers: DeviceBuffers) -> None:
    """Frees buffers; a device that has failed frees its own."""
    with suppress(BackendError):
        device.use()
        device.synchronize()
    buffers.close()

"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import MissingDependencyError
from hybrid_deploy.runtime.backends.onnxruntime.decoding import OnnxRuntimeDecoding
from hybrid_deploy.runtime.backends.onnxruntime.encoded_batch import OnnxRuntimeEncodedBatch
from hybrid_deploy.runtime.backends.onnxruntime.inference_session import backend_errors, run_in_time
from hybrid_deploy.runtime.backends.onnxruntime.variant_sessions import VariantSessions
from hybrid_deploy.runtime.backends.registry import BackendOptions
from hybrid_deploy.runtime.backends.tensor_checks import check_inputs
from hybrid_deploy.runtime.host.large_pages import LargePages

try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingDependencyError("onnxruntime", extra="cpu") from error


def load(bundle: Bundle, variant: str, options: BackendOptions) -> OnnxRuntimeBackend:
    """Loads one variant of a bundle.

    Raises:
        BackendError: ONNX Runtime cannot load a graph, or has no CPU kernels for its dtypes.
    """
    return OnnxRuntimeBackend(bundle, variant, options)


class OnnxRuntimeBackend(VariantSessions):
    """One variant on the CPU: an encoder that runs once per batch, and decoder graphs.

    Attributes:
        name: name of the backend on the command line.
        version: name and version of ONNX Runtime.
    """

    name = "onnxruntime"
    version = f"onnxruntime {ort.__version__}"

    def __init__(
        self, bundle: Bundle, variant: str, options: BackendOptions, *, complete: bool = False
    ) -> None:
        self._pages = LargePages() if options.large_pages else None
        super().__init__(bundle, variant, options, complete=complete)

    def start(self, inputs: Mapping[str, NDArray[Any]]) -> OnnxRuntimeDecoding:
        """Encodes a batch and returns its decoding.

        Raises:
            InputError: the name, type or shape of an input is not what the encoder takes.
            BackendError: ONNX Runtime failed.
        """
        return OnnxRuntimeDecoding(self, *self._encode(inputs))

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> OnnxRuntimeEncodedBatch:
        """Encodes a batch for several decodings; see `KeepsMemory.encode`.

        Raises:
            InputError: the name, type or shape of an input is not what the encoder takes.
            BackendError: ONNX Runtime failed.
        """
        return OnnxRuntimeEncodedBatch(self, *self._encode(inputs))

    def _encode(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[int, dict[str, ort.OrtValue]]:
        """Runs the encoder; returns the number of sequences, and the outputs by name."""
        spec = self.spec(GraphRole.ENCODER)
        batch = check_inputs(spec, inputs)
        with backend_errors("the encoder"):
            encoder = self.encoder_session
            binding = encoder.io_binding()
            for name, value in inputs.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            for output in spec.outputs:
                binding.bind_output(output.name)
            run_in_time(lambda *options: encoder.run_with_iobinding(binding, *options))
            encoded = dict(zip((o.name for o in spec.outputs), binding.get_outputs(), strict=True))
        if self._pages is not None:
            self._pages.use()
        return batch, encoded

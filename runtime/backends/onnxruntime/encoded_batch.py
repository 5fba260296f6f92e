"""What the encoder returned for one batch in ONNX Runtime, kept for several decodings."""

from __future__ import annotations

from collections.abc import Mapping

from hybrid_deploy.contract import GraphRole, cache_of, is_memory, is_next_cache
from hybrid_deploy.errors import BackendError, MissingDependencyError
from hybrid_deploy.runtime.backends.onnxruntime.decoding import OnnxRuntimeDecoding, copy_of
from hybrid_deploy.runtime.backends.onnxruntime.variant_sessions import VariantSessions

try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingDependencyError("onnxruntime", extra="cpu") from error


class OnnxRuntimeEncodedBatch:
    """The encoder's outputs for one batch; steps only read the memory among them, and it is shared.

    Attributes:
        batch: number of sequences.

    Args:
        sessions: sessions of the variant.
        batch: number of sequences.
        encoded: outputs of the encoder by name.
    """

    def __init__(
        self, sessions: VariantSessions, batch: int, encoded: Mapping[str, ort.OrtValue]
    ) -> None:
        self.batch = batch
        self._sessions = sessions
        self._encoded: Mapping[str, ort.OrtValue] | None = encoded
        outputs = (spec.name for spec in sessions.spec(GraphRole.STEP).outputs)
        written = {cache_of(name) for name in outputs if is_next_cache(name)}
        self._written = {name for name in encoded if name in written and not is_memory(name)}

    def start(self) -> OnnxRuntimeDecoding:
        """Returns a new decoding, with its own copy of the caches that the encoder filled.

        Raises:
            BackendError: the batch is closed.
        """
        if self._encoded is None:
            raise BackendError("this encoded input is closed; encode the input again")
        own = {
            name: copy_of(value) if name in self._written else value
            for name, value in self._encoded.items()
        }
        return OnnxRuntimeDecoding(self._sessions, self.batch, own)

    def close(self) -> None:
        """Frees the outputs, except those that a decoding still uses."""
        self._encoded = None

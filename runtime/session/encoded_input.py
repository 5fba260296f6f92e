"""An input that was encoded once, for several questions about it."""

from __future__ import annotations

from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.backends.protocol import Backend, Decoding, EncodedBatch


class EncodedInput:
    """The memory of one batch of inputs; `Session.encode` returns it, any number of runs read it.

    Its memory stays in RAM or on the device until it is closed or no longer used. Several threads
    may use one at the same time where they may use the session so.

    Attributes:
        preprocess_ms: milliseconds from the files to the encoder inputs.
        encoder_ms: milliseconds of the encoder.

    Args:
        backend: backend that encoded the batch.
        memory: what the encoder returned.
        preprocess_ms: milliseconds from the files to the encoder inputs.
        encoder_ms: milliseconds of the encoder.
    """

    def __init__(
        self, backend: Backend, memory: EncodedBatch, preprocess_ms: float, encoder_ms: float
    ) -> None:
        self._backend = backend
        self._memory = memory
        self.preprocess_ms = preprocess_ms
        self.encoder_ms = encoder_ms

    @property
    def batch(self) -> int:
        """Number of inputs that were encoded together."""
        return self._memory.batch

    def start(self, backend: Backend) -> Decoding:
        """Returns a new decoding of the memory, before its first token.

        Args:
            backend: backend of the session that is to decode it.

        Raises:
            UsageError: another session encoded the input.
            BackendError: the input is closed, or the backend failed.
        """
        if backend is not self._backend:
            raise UsageError(
                "the input was encoded by another session, whose memory this one cannot read; "
                "encode it with the session that runs it"
            )
        return self._memory.start()

    def close(self) -> None:
        """Frees the memory; sequences that are being decoded are not affected."""
        self._memory.close()

    def __enter__(self) -> EncodedInput:
        """Returns the encoded input itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Frees the memory."""
        self.close()

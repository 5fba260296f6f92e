"""A backend that records its calls and their logits, so that another backend can replay them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from hybrid_deploy.runtime.backends.protocol import Backend, Decoding, FloatArray, IntArray


@dataclass(frozen=True)
class RecordedCall:
    """One call of prefill or step, with the logits that it returned.

    Attributes:
        tokens: the input tokens, int64: (batch,) for a step, (batch, length) for a prefill.
        position: (batch,) int64, position of each sequence's first input token.
        last: (batch,) int64, index of each sequence's last real token within `tokens`; None for a
            step.
        logits: (batch, vocabulary) float32, a copy that the backend does not reuse.
    """

    tokens: IntArray
    position: IntArray
    last: IntArray | None
    logits: FloatArray

    def replay(self, decoding: Decoding) -> FloatArray:
        """Makes the same call on another decoding.

        Returns:
            logits (batch, vocabulary); they belong to the decoding, whose next call overwrites
            them.
        """
        if self.last is None:
            return decoding.step(self.tokens, self.position)
        return decoding.prefill(self.tokens, self.position, self.last)


class RecordingBackend:
    """Records every call of its newest decoding until a number of bytes is used up.

    Attributes:
        calls: the recorded calls of the newest decoding; the first call is always among them.
        bytes_left: number of bytes that further inputs and logits may take; it may fall below 0.
    """

    def __init__(self, backend: Backend, bytes_left: int) -> None:
        self.name, self.version = backend.name, backend.version
        self.calls: list[RecordedCall] = []
        self.bytes_left = bytes_left
        self._backend = backend

    def start(self, inputs: Mapping[str, NDArray[Any]]) -> RecordedDecoding:
        """Encodes a batch and returns its decoding; the calls of the one before are dropped."""
        self.calls = []
        self.bytes_left -= sum(array.nbytes for array in inputs.values())
        return RecordedDecoding(self, self._backend.start(inputs))

    def record(self, call: RecordedCall) -> None:
        """Records a call if bytes are left, or if it is the first of its decoding."""
        if self.bytes_left > 0 or not self.calls:
            self.calls.append(call)
            self.bytes_left -= call.logits.nbytes


class RecordedDecoding:
    """A decoding whose calls are recorded."""

    def __init__(self, backend: RecordingBackend, decoding: Decoding) -> None:
        self.batch = decoding.batch
        self._backend = backend
        self._decoding = decoding

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        """Decodes several tokens per sequence."""
        logits = self._decoding.prefill(tokens, position, last)
        self._backend.record(RecordedCall(tokens, position, last, logits.copy()))
        return logits

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        """Decodes one token per sequence."""
        logits = self._decoding.step(token, position)
        self._backend.record(RecordedCall(token.copy(), position.copy(), None, logits.copy()))
        return logits

"""A backend that records what it was asked for and what it answered, to ask another the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from hybrid_deploy.runtime.backends.protocol import Backend, Decoding, FloatArray, IntArray


@dataclass(frozen=True)
class RecordedCall:
    """One call of a decoding, with the logits that it gave.

    Attributes:
        tokens: (batch,) of a step, (batch, length) of a prefill.
        position: (batch,), of the first token.
        last: (batch,), index of each sequence's last real token; None of a step.
        logits: (batch, vocabulary), a copy.
    """

    tokens: IntArray
    position: IntArray
    last: IntArray | None
    logits: FloatArray

    def replay(self, decoding: Decoding) -> FloatArray:
        """Makes the same call again; gives logits (batch, vocabulary), valid until the next."""
        if self.last is None:
            return decoding.step(self.tokens, self.position)
        return decoding.prefill(self.tokens, self.position, self.last)


class RecordingBackend:
    """Records every call of its newest decoding, as long as there is room.

    Attributes:
        turns: the calls of the newest decoding, at least its first.
        bytes_left: room for more inputs and logits.
    """

    def __init__(self, backend: Backend, bytes_left: int) -> None:
        self.name, self.version = backend.name, backend.version
        self.calls: list[RecordedCall] = []
        self.bytes_left = bytes_left
        self._backend = backend

    def start(self, inputs: Mapping[str, NDArray[Any]]) -> RecordedDecoding:
        """Encodes a batch and makes ready to decode it."""
        self.calls = []
        self.bytes_left -= sum(array.nbytes for array in inputs.values())
        return RecordedDecoding(self, self._backend.start(inputs))

    def record(self, turn: RecordedCall) -> None:
        """Keeps a call, if there is room."""
        if self.bytes_left > 0 or not self.calls:
            self.calls.append(turn)
            self.bytes_left -= turn.logits.nbytes


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

"""The decoding of a batch whose encoder was ended at the deadline: it has no memory."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.deadline import StoppedError


@dataclass(frozen=True)
class StoppedDecoding:
    """A decoding that decodes nothing, so that its sequences end by the timeout, without tokens.

    Attributes:
        batch: number of sequences.
        resizable: whether the number of sequences may change; a beam search needs that.
    """

    batch: int
    resizable: bool = True

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        """Decodes nothing.

        Raises:
            StoppedError: always.
        """
        raise StoppedError("the encoder was ended when its time was over")

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        """Decodes nothing.

        Raises:
            StoppedError: always.
        """
        raise StoppedError("the encoder was ended when its time was over")

    def reorder(self, rows: IntArray) -> None:
        """Changes nothing."""

    def select(self, rows: IntArray) -> StoppedDecoding:
        """Returns a decoding of as many sequences as `rows` has."""
        return StoppedDecoding(len(rows))

    def expand_beams(self, count: int) -> StoppedDecoding:
        """Returns a decoding of `count` sequences for each."""
        return StoppedDecoding(self.batch * count)

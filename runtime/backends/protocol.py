"""What a backend is, and how one is chosen. No vendor library is imported here."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
Run = Literal["graph", "enqueue"]


class Decoding(Protocol):
    """One batch that is being decoded: its memory and caches, owned by the backend."""

    @property
    def batch(self) -> int:
        """Number of sequences."""
        ...

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        """Decodes several tokens per sequence.

        Args:
            tokens: (batch, length), padded on the right.
            position: (batch,), of the first token.
            last: (batch,), index of each sequence's last real token.

        Returns:
            logits (batch, vocabulary) after the last real token; valid until the next call.
        """
        ...

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        """Decodes one token per sequence.

        Args:
            token: (batch,); the caller's, who changes it after the call.
            position: (batch,); as `token`.

        Returns:
            logits (batch, vocabulary); valid until the next call.
        """
        ...


@runtime_checkable
class SeveralHeads(Protocol):
    """A decoding whose decoder returns more than logits."""

    @property
    def heads(self) -> Mapping[str, NDArray[Any]]:
        """What the further heads gave last, (batch, width) each; valid until the next call."""
        ...


@runtime_checkable
class ApproximateLogits(Protocol):
    """A decoding that gives all logits roughly, and the true ones of some tokens when asked."""

    @property
    def error_bound(self) -> FloatArray | None:
        """How far each logit of the newest step can be off, (batch,); None if all are exact."""
        ...

    def prefill_approximate(
        self, tokens: IntArray, position: IntArray, last: IntArray
    ) -> FloatArray:
        """Does what `prefill` does; the logits are within the margin."""
        ...

    def step_approximate(self, token: IntArray, position: IntArray) -> FloatArray:
        """Does what `step` does; the logits are within the margin."""
        ...

    def exact_logits(self, row: int, tokens: IntArray) -> FloatArray:
        """Returns the true logits of some tokens after the newest step, (n,).

        Args:
            row: which sequence.
            tokens: (n,).
        """
        ...


@runtime_checkable
class ReorderableDecoding(Decoding, Protocol):
    """A decoding whose sequences can change places, become beams and be left out.

    A beam search needs it; a batch whose sequences end one by one is made smaller with it.
    """

    @property
    def resizable(self) -> bool:
        """Whether `select` may change the number of sequences: not with a fixed batch."""
        ...

    def reorder(self, rows: IntArray) -> None:
        """Lets every sequence go on from what another one, of the same input, was.

        Args:
            rows: (batch,); sequence i gets the caches and the carried state of sequence rows[i].
                Memory stays where it is, so that rows[i] must decode the same input as i.
        """
        ...

    def select(self, rows: IntArray) -> ReorderableDecoding:
        """Returns the decoding of chosen sequences, memory and caches included.

        The decoding that it is called on is not used afterwards.

        Args:
            rows: (any number,); sequence i of the result is what sequence rows[i] was. A sequence
                may be left out, or come several times. Where the beams of an input stay together,
                they go on sharing its memory.
        """
        ...

    def expand_beams(self, count: int) -> ReorderableDecoding:
        """Returns the decoding in which every sequence is `count` beams, side by side.

        They share its memory where the backend can; else it is copied. The decoding that it is
        called on is not used afterwards. A search begins with one beam for each input, so that one
        graph does all of its steps.
        """
        ...


@dataclass(frozen=True)
class StepBlock:
    """Tokens that a device made by itself, one row per step.

    Attributes:
        tokens: (n, batch) int64.
        scores: (n, batch) float32, natural logarithm of each token's probability.
        run: whether the steps were replayed as one recorded graph or launched one by one.
        reason: why they could not be recorded; None where they were.
    """

    tokens: IntArray
    scores: FloatArray
    run: Run
    reason: str | None = None


@runtime_checkable
class GeneratesOnDevice(Protocol):
    """A decoding that feeds its own likeliest tokens back on the device."""

    def step_blocks(self, token: IntArray, position: IntArray) -> Generator[StepBlock, None, None]:
        """Decodes greedily without the host.

        The next block is already under way on the device when one is yielded. It ends when every
        sequence has been at the caches' last position; what a sequence gets after its own last
        position means nothing. Close the iterator to stop: the batch can then be stepped on from
        any position that it has passed, unless its decoder carries a state.

        Args:
            token: (batch,), the newest of each sequence.
            position: (batch,), where they go.

        Raises:
            BackendError: the device failed; the message has the step.
        """
        ...


class Backend(Protocol):
    """Runs the graphs of one variant of a bundle."""

    @property
    def name(self) -> str:
        """Name as given on the command line."""
        ...

    @property
    def version(self) -> str:
        """The library that computes, with its version."""
        ...

    def start(self, inputs: Mapping[str, NDArray[Any]]) -> Decoding:
        """Encodes a batch and makes ready to decode it.

        Raises:
            InputError: an input has another name, type or shape than the encoder takes.
            BackendError: the library failed.
        """
        ...

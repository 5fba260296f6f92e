"""The interfaces between the generation loop and a backend. No vendor library is imported here."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

LaunchMode = Literal["graph", "enqueue"]
"""How a device runs a block of steps: as one recorded CUDA graph, or launched one by one."""


class Decoding(Protocol):
    """The decoding of one batch; the backend owns the batch's memory and caches."""

    @property
    def batch(self) -> int:
        """Number of sequences."""
        ...

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        """Decodes several tokens per sequence.

        Args:
            tokens: prompts, (batch, length) int64, padded on the right.
            position: position of the first token of each sequence, (batch,) int64.
            last: index of each sequence's last real token, (batch,) int64.

        Returns:
            Logits after each sequence's last real token, (batch, vocabulary) float32. The backend
            owns the array; it is valid until the next call.
        """
        ...

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        """Decodes one token per sequence.

        Args:
            token: newest token of each sequence, (batch,) int64. The caller owns the array and may
                change it after the call.
            position: position of that token, (batch,) int64; owned by the caller too.

        Returns:
            Logits after that token, (batch, vocabulary) float32. The backend owns the array; it is
            valid until the next call.
        """
        ...


@runtime_checkable
class SeveralHeads(Protocol):
    """A decoding whose decoder returns more than logits."""

    @property
    def heads(self) -> Mapping[str, NDArray[Any]]:
        """Outputs of the decoder's further heads in the newest run, by name, (batch, width) each.

        The backend owns the arrays; they are valid until the next call.
        """
        ...


@runtime_checkable
class ApproximateLogits(Protocol):
    """A decoding that computes approximate logits, and the exact logits of chosen tokens.

    The approximate logits come with an error bound: only the tokens that can still be the likeliest
    within it need exact logits.
    """

    @property
    def error_bound(self) -> FloatArray | None:
        """Largest error of a logit of the newest step, (batch,) float32; None if all are exact."""
        ...

    def prefill_approximate(
        self, tokens: IntArray, position: IntArray, last: IntArray
    ) -> FloatArray:
        """Does the same as `prefill`, but the logits are exact only within the error bound."""
        ...

    def step_approximate(self, token: IntArray, position: IntArray) -> FloatArray:
        """Does the same as `step`, but the logits are exact only within the error bound."""
        ...

    def exact_logits(self, row: int, tokens: IntArray) -> FloatArray:
        """Returns the exact logits of chosen tokens after the newest step, (n,) float32.

        Args:
            row: index of the sequence in the batch.
            tokens: the chosen tokens, (n,) int64.
        """
        ...


@runtime_checkable
class ReorderableDecoding(Decoding, Protocol):
    """A decoding whose sequences can be reordered, copied to several beams, and removed.

    A beam search needs it. A batch uses it to become smaller when some of its sequences end.
    """

    @property
    def resizable(self) -> bool:
        """Whether `select` may change the number of sequences; False where the batch is fixed."""
        ...

    def reorder(self, rows: IntArray) -> None:
        """Copies caches and recurrent state between the sequences of the same input.

        Args:
            rows: source of each sequence, (batch,) int64: sequence i continues from the caches and
                the recurrent state of sequence rows[i]. The memory is not moved, so rows[i] must
                decode the same input as i.
        """
        ...

    def select(self, rows: IntArray) -> ReorderableDecoding:
        """Returns the decoding of chosen sequences, with their memory and caches.

        Do not use the old decoding after the call.

        Args:
            rows: source of each sequence of the result, (any number,) int64: sequence i of the
                result continues from sequence rows[i]. A sequence may be absent from `rows`, or
                occur several times. Beams of an input that stay side by side still share its
                memory.
        """
        ...

    def expand_beams(self, count: int) -> ReorderableDecoding:
        """Returns the decoding in which every sequence becomes `count` beams, side by side.

        The beams share the memory of their input if the backend can do that; otherwise the memory
        is copied. Do not use the old decoding after the call. A beam search starts with
        `expand_beams(1)`, so that the same graph decodes all of its steps.
        """
        ...


@dataclass(frozen=True)
class StepBlock:
    """The tokens of several steps that a device has decoded without the host, one row per step.

    Attributes:
        tokens: chosen tokens, (n, batch) int64.
        scores: natural logarithm of each token's probability, (n, batch) float32.
        run: how the device ran the steps: as one recorded CUDA graph, or launched one by one.
        reason: why the steps could not be recorded; None if they were.
    """

    tokens: IntArray
    scores: FloatArray
    run: LaunchMode
    reason: str | None = None


@runtime_checkable
class GeneratesOnDevice(Protocol):
    """A decoding that feeds its own likeliest tokens back on the device."""

    def step_blocks(self, token: IntArray, position: IntArray) -> Generator[StepBlock, None, None]:
        """Decodes greedily on the device, and yields the tokens in blocks of several steps.

        When a block is yielded, the device already computes the next one. The generator ends when
        every sequence has reached the last position of the caches; ignore the tokens that a
        sequence gets after its own last position. Close the generator to stop earlier: `step` can
        then continue from any position that the batch has passed, unless the decoder has a
        recurrent state.

        Args:
            token: newest token of each sequence, (batch,) int64.
            position: position of that token, (batch,) int64.

        Yields:
            Blocks whose arrays the caller owns.

        Raises:
            BackendError: the device failed; the message names the step.
        """
        ...


class EncodedBatch(Protocol):
    """What the encoder returned for one batch; any number of decodings start from it."""

    @property
    def batch(self) -> int:
        """Number of sequences."""
        ...

    def start(self) -> Decoding:
        """Returns a new decoding before its first token; the encoder does not run again.

        Caches that the encoder fills are copied, so that the tokens of one decoding do not reach
        the next one.

        Raises:
            BackendError: the batch is closed, or the library failed.
        """
        ...

    def close(self) -> None:
        """Frees what the batch holds; decodings that were started are not affected."""
        ...


@runtime_checkable
class KeepsMemory(Protocol):
    """A backend that encodes a batch once for several decodings."""

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> EncodedBatch:
        """Encodes a batch and keeps the result.

        Args:
            inputs: the encoder's inputs by name; the first dimension of each is the batch.

        Raises:
            InputError: the name, type or shape of an input is not what the encoder takes.
            BackendError: the library failed.
        """
        ...


@runtime_checkable
class HasNotes(Protocol):
    """A backend that replaces what it cannot load by something slower, and states that."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user, which every result repeats."""
        ...


class Backend(Protocol):
    """Runs the graphs of one variant of a bundle."""

    @property
    def name(self) -> str:
        """Name of the backend on the command line."""
        ...

    @property
    def version(self) -> str:
        """Name and version of the library that computes."""
        ...

    def start(self, inputs: Mapping[str, NDArray[Any]]) -> Decoding:
        """Encodes a batch and returns its decoding.

        Args:
            inputs: the encoder's inputs by name; the first dimension of each is the batch.

        Raises:
            InputError: the name, type or shape of an input is not what the encoder takes.
            BackendError: the library failed.
        """
        ...

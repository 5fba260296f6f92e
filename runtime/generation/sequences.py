"""The sequences of a batch: their tokens, the limits that end them, and the results."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hybrid_deploy.bundle.manifest import Manifest
from hybrid_deploy.contract import LOGITS
from hybrid_deploy.errors import CapacityError, UsageError
from hybrid_deploy.runtime.backends.protocol import IntArray
from hybrid_deploy.runtime.generation.incremental_text import IncrementalDetokenizer

FinishReason = Literal["end", "stop", "length", "capacity", "timeout", "cancelled"]
"""Why a sequence ended: by an end token ("end"), by a stop string ("stop"), at the largest length
that was asked for ("length"), because the caches are full ("capacity"), by the timeout ("timeout")
or by the caller ("cancelled")."""


@dataclass(frozen=True)
class Limits:
    """End tokens and largest lengths of a sequence.

    Attributes:
        end_tokens: ids of the tokens that end a sequence; () if the model has none.
        pad_token: id of the token that ended sequences get while others of their batch go on.
        max_length: largest number of tokens, with the prompt; None limits only the new tokens.
        capacity: number of positions in the caches; the last token of a sequence needs none.
        max_new_tokens: largest number of tokens after the prompt; None limits only the length.
    """

    end_tokens: tuple[int, ...]
    pad_token: int
    max_length: int | None
    capacity: int
    max_new_tokens: int | None = None

    def requested_tokens(self, prompt: int) -> int:
        """Returns the number of new tokens that the lengths allow; the caches may hold fewer.

        Args:
            prompt: number of tokens of the prompt.
        """
        new = self.capacity + 1 if self.max_new_tokens is None else self.max_new_tokens
        return new if self.max_length is None else min(new, self.max_length - prompt)

    def max_tokens(self, prompt: int) -> tuple[int, FinishReason]:
        """Returns the largest number of new tokens after a prompt, and the limit that sets it.

        Args:
            prompt: number of tokens of the prompt.
        """
        requested, room = self.requested_tokens(prompt), self.capacity + 1 - prompt
        return (requested, "length") if requested <= room else (room, "capacity")


def limits_of(manifest: Manifest) -> Limits:
    """Returns the limits in the generation defaults of a bundle."""
    defaults = manifest.generation
    return Limits(
        end_tokens=defaults.end_tokens,
        pad_token=pad_token_of(manifest),
        max_length=defaults.max_length,
        capacity=manifest.capacity,
    )


def vocabulary_size(manifest: Manifest) -> int:
    """Returns the number of tokens that the model chooses from; a huge one if it is not fixed."""
    step = next(iter(manifest.variants.values())).step
    size = next((tensor.shape[-1] for tensor in step.outputs if tensor.name == LOGITS), None)
    return size if isinstance(size, int) else sys.maxsize


def pad_token_of(manifest: Manifest) -> int:
    """Returns the token that the decoder reads for an ended sequence, one that it surely knows.

    Whatever the decoder computes for an ended sequence is ignored.
    """
    return min(manifest.generation.pad_token, vocabulary_size(manifest) - 1)


def check_prompts(prompts: Sequence[Sequence[int]], batch: int, limits: Limits) -> None:
    """Checks that every sequence has a prompt that leaves room for a new token.

    Raises:
        UsageError: a prompt is empty or too long, or the number of prompts is not `batch`.
        CapacityError: a prompt is longer than the caches.
    """
    if len(prompts) != batch:
        raise UsageError(f"expected one prompt for each of {batch} sequences, got {len(prompts)}")
    for prompt in prompts:
        if not prompt:
            raise UsageError("a prompt is empty; give at least a start token")
        if len(prompt) > limits.capacity:
            raise CapacityError(
                f"a prompt of {len(prompt)} tokens does not fit the decoder's "
                f"{limits.capacity} positions; shorten it or export with a larger max_length"
            )
        if limits.requested_tokens(len(prompt)) < 1:
            raise UsageError(
                f"a prompt of {len(prompt)} tokens leaves no room in a sequence of "
                f"{limits.max_length}; shorten it or allow more tokens"
            )


@dataclass(eq=False)
class Row:
    """One sequence of a batch while it is decoded.

    Attributes:
        index: index of the sequence in the batch.
        prompt: ids of the prompt's tokens.
        max_tokens: largest number of new tokens.
        limit: the finish reason when `max_tokens` is reached.
        tokens: ids of the new tokens.
        scores: log-probability of each new token; empty unless scores are requested.
        finish: why the sequence ended; None while it is decoded.
        detokenizer: the text so far; None unless there are stop strings.
        text: the text before a stop string; None if no stop string ended the sequence.
        random: generator that the sequence is sampled with; None without sampling.
    """

    index: int
    prompt: tuple[int, ...]
    max_tokens: int
    limit: FinishReason
    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    detokenizer: IncrementalDetokenizer | None = None
    text: str | None = None
    random: np.random.Generator | None = None

    def __post_init__(self) -> None:
        self._ids = np.zeros(len(self.prompt) + self.max_tokens, np.int64)
        self._ids[: len(self.prompt)] = self.prompt

    @property
    def sequence(self) -> IntArray:
        """Ids of the prompt and the new tokens, (length,); valid until the next `add`."""
        return self._ids[: len(self.prompt) + len(self.tokens)]

    def add(self, token: int) -> None:
        """Appends a new token."""
        self._ids[len(self.prompt) + len(self.tokens)] = token
        self.tokens.append(token)


def begin_rows(prompts: Sequence[Sequence[int]], batch: int, limits: Limits) -> list[Row]:
    """Returns the sequences before their first new token.

    Raises:
        UsageError: a prompt is empty or too long, or the number of prompts is not `batch`.
        CapacityError: a prompt is longer than the caches.
    """
    check_prompts(prompts, batch, limits)
    return [
        Row(index, tuple(prompt), *limits.max_tokens(len(prompt)))
        for index, prompt in enumerate(prompts)
    ]


@dataclass(frozen=True)
class SequenceResult:
    """The result of one sequence.

    Attributes:
        tokens: ids of the new tokens, without the prompt, with the end token.
        scores: natural logarithm of each token's probability, after the processors; None unless
            scores are requested.
        finish: why the sequence ended.
        text: the text before a stop string; None if no stop string ended the sequence.
        sequence_score: number that a beam search ranks the sequence by: the sum of its scores
            divided by length ** length_penalty; None without beam search.
        alternatives: the next best sequences of a beam search, the best one first.
    """

    tokens: tuple[int, ...]
    scores: tuple[float, ...] | None
    finish: FinishReason
    text: str | None = None
    sequence_score: float | None = None
    alternatives: tuple[SequenceResult, ...] = ()


@dataclass(frozen=True)
class BatchResult:
    """The result of a batch, and the time of each step.

    Attributes:
        sequences: the result of each sequence, in the order of the batch.
        first_ms: milliseconds from the start of the prompt to the first token.
        step_ms: milliseconds of each later step.
        notes: remarks of the backend for the user.
    """

    sequences: tuple[SequenceResult, ...]
    first_ms: float
    step_ms: tuple[float, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cancellation:
    """Ends the decoding of a batch early: on an event, or at a deadline.

    Attributes:
        cancel: event that ends the decoding before the next token once it is set.
        deadline: value of `time.perf_counter` in seconds from which no further step starts, and at
            which a graph that runs is ended where the backend can do that.
    """

    cancel: threading.Event | None = None
    deadline: float | None = None

    def reason(self) -> FinishReason | None:
        """Returns why the decoding must end now; None if it may go on."""
        if self.cancel is not None and self.cancel.is_set():
            return "cancelled"
        if self.deadline is not None and time.perf_counter() >= self.deadline:
            return "timeout"
        return None

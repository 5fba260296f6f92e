"""Sequences while they grow: their tokens, when they end, and why."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hybrid_deploy.bundle.manifest import Manifest
from hybrid_deploy.errors import CapacityError, UsageError
from hybrid_deploy.runtime.backends.protocol import IntArray
from hybrid_deploy.runtime.generation.incremental_text import IncrementalDetokenizer

FinishReason = Literal["end", "stop", "length", "capacity", "timeout", "cancelled"]
"""Why a sequence ended: its end token came, or a stop sequence; there are as many tokens as were
wanted, or as the caches hold; the time was over; somebody asked to stop."""


@dataclass(frozen=True)
class Limits:
    """When a sequence ends.

    Attributes:
        end_tokens: each of them ends it; none if the model has none.
        pad_token: what a finished sequence is fed while others go on.
        max_length: largest number of tokens, the prompt included; None if only the new ones count.
        capacity: positions that the caches hold; the last token needs none.
        max_new_tokens: largest number of new tokens; None if only the whole length counts.
    """

    end_tokens: tuple[int, ...]
    pad_token: int
    max_length: int | None
    capacity: int
    max_new_tokens: int | None = None

    def wanted(self, prompt: int) -> int:
        """Returns how many tokens may follow a prompt of that length, if the caches hold them."""
        new = self.capacity + 1 if self.max_new_tokens is None else self.max_new_tokens
        return new if self.max_length is None else min(new, self.max_length - prompt)

    def most(self, prompt: int) -> tuple[int, FinishReason]:
        """Returns how many tokens may follow a prompt of that length, and why no more."""
        wanted, room = self.wanted(prompt), self.capacity + 1 - prompt
        return (wanted, "length") if wanted <= room else (room, "capacity")


def limits_of(manifest: Manifest) -> Limits:
    """Returns the limits that a bundle asks for."""
    defaults = manifest.generation
    return Limits(
        end_tokens=defaults.end_tokens,
        pad_token=defaults.pad_token,
        max_length=defaults.max_length,
        capacity=manifest.capacity,
    )


def check_prompts(prompts: Sequence[Sequence[int]], batch: int, limits: Limits) -> None:
    """Checks that every sequence has a prompt that leaves room for a token.

    Raises:
        UsageError: a prompt is empty or too long, or there is not one for each sequence.
        CapacityError: a prompt is longer than the caches.
    """
    if len(prompts) != batch:
        raise UsageError(f"expected one prompt for each of {batch} sequences, got {len(prompts)}")
    for prompt in prompts:
        if not prompt:
            raise UsageError("a prompt is empty; it needs at least a start token")
        if len(prompt) > limits.capacity:
            raise CapacityError(
                f"a prompt of {len(prompt)} tokens does not fit the decoder's "
                f"{limits.capacity} positions; shorten it or export with a larger max_length"
            )
        if limits.wanted(len(prompt)) < 1:
            raise UsageError(
                f"a prompt of {len(prompt)} tokens leaves no room in a sequence of "
                f"{limits.max_length}; shorten it or allow more tokens"
            )


@dataclass(eq=False)
class Row:
    """One sequence while it grows.

    Attributes:
        index: its place in the batch.
        prompt: the tokens that were given.
        most: how many tokens may follow.
        limit: why no more.
        tokens: the new tokens.
        scores: of each, if they are asked for.
        finish: why it ended; None while it grows.
        reading: its text so far, if that is needed.
        text: its text as far as a stop sequence; None if there was none.
        random: what a sampler draws from.
    """

    index: int
    prompt: tuple[int, ...]
    most: int
    limit: FinishReason
    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    reading: IncrementalDetokenizer | None = None
    text: str | None = None
    random: np.random.Generator | None = None

    def __post_init__(self) -> None:
        self._ids = np.zeros(len(self.prompt) + self.most, np.int64)
        self._ids[: len(self.prompt)] = self.prompt

    @property
    def sequence(self) -> IntArray:
        """The prompt and the new tokens; valid until the next token."""
        return self._ids[: len(self.prompt) + len(self.tokens)]

    def add(self, token: int) -> None:
        """Appends a token."""
        self._ids[len(self.prompt) + len(self.tokens)] = token
        self.tokens.append(token)


def begin_rows(prompts: Sequence[Sequence[int]], batch: int, limits: Limits) -> list[Row]:
    """Returns the sequences before their first token.

    Raises:
        UsageError: a prompt is empty or too long, or there is not one for each sequence.
        CapacityError: a prompt is longer than the caches.
    """
    check_prompts(prompts, batch, limits)
    return [
        Row(index, tuple(prompt), *limits.most(len(prompt))) for index, prompt in enumerate(prompts)
    ]


@dataclass(frozen=True)
class SequenceResult:
    """What became of one sequence.

    Attributes:
        tokens: the new tokens, without the prompt, the end token included.
        scores: natural logarithm of each token's probability, after the processors; None if they
            were not asked for.
        finish: why it ended.
        text: the text as far as a stop sequence; None if none came.
        total: what a beam search ranks it by: the sum of the scores over length ** length_penalty.
        others: of a beam search the next best sequences, the best first.
    """

    tokens: tuple[int, ...]
    scores: tuple[float, ...] | None
    finish: FinishReason
    text: str | None = None
    sequence_score: float | None = None
    alternatives: tuple[SequenceResult, ...] = ()


@dataclass(frozen=True)
class BatchResult:
    """What became of a batch, and how long each step took.

    Attributes:
        first_ms: time of the prompt, up to the first token.
        step_ms: time of every later token of the batch.
        notes: what the backend had to say.
    """

    sequences: tuple[SequenceResult, ...]
    first_ms: float
    step_ms: tuple[float, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cancellation:
    """What ends the decoding of a batch from outside.

    Attributes:
        cancel: ends it between two tokens once it is set.
        deadline: time of `time.perf_counter` from which no further token is begun.
    """

    cancel: threading.Event | None = None
    deadline: float | None = None

    def reason(self) -> FinishReason | None:
        """Returns why no further token is wanted; None if it is."""
        if self.cancel is not None and self.cancel.is_set():
            return "cancelled"
        if self.deadline is not None and time.perf_counter() >= self.deadline:
            return "timeout"
        return None

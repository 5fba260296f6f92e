"""The generation loop: tokens from a decoding, one step at a time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hybrid_deploy.errors import BackendError, CapacityError, UsageError
from hybrid_deploy.manifest import Manifest
from hybrid_deploy.runtime.backend import Decoding, FloatArray, IntArray
from hybrid_deploy.runtime.processors import Processor

Finish = Literal["end", "length"]


@dataclass(frozen=True)
class Limits:
    """When a sequence ends.

    Attributes:
        end_tokens: each of them ends it; none if the model has none.
        pad_token: what a finished sequence is fed while others go on.
        max_length: largest number of tokens, the prompt included.
        capacity: positions that the caches hold; the last token needs none.
    """

    end_tokens: tuple[int, ...]
    pad_token: int
    max_length: int
    capacity: int


def limits_of(manifest: Manifest) -> Limits:
    """Gives the limits that a bundle asks for."""
    defaults = manifest.generation
    return Limits(
        end_tokens=defaults.end_tokens,
        pad_token=defaults.pad_token,
        max_length=defaults.max_length,
        capacity=manifest.capacity,
    )


@dataclass
class _Row:
    """One sequence while it grows."""

    prompt: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def sequence(self) -> IntArray:
        """The prompt and the new tokens."""
        return np.array([*self.prompt, *self.tokens], np.int64)


@dataclass(frozen=True)
class Decoded:
    """What became of one sequence.

    Attributes:
        tokens: the new tokens, without the prompt, the end token included.
        scores: natural logarithm of each token's probability, after the processors.
        finish: `end` after the end token, `length` when the limit was reached.
    """

    tokens: tuple[int, ...]
    scores: tuple[float, ...]
    finish: Finish


@dataclass(frozen=True)
class Decodes:
    """What became of a batch, and how long each step took.

    Attributes:
        first_ms: time of the prompt, up to the first token.
        step_ms: time of every later token of the batch.
    """

    sequences: tuple[Decoded, ...]
    first_ms: float
    step_ms: tuple[float, ...]


def decode_greedily(
    decoding: Decoding,
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    processors: Sequence[Processor] = (),
) -> Decodes:
    """Continues every prompt with the likeliest token, until all have ended.

    Args:
        decoding: a started batch.
        prompts: for each sequence its first tokens, at least one.
        limits: when a sequence ends.
        processors: what changes the logits first, in this order.

    Raises:
        UsageError: a prompt is empty, or there is not one for each sequence.
        CapacityError: a prompt is longer than the caches.
        BackendError: the logits are not numbers, or the processors leave no token.
    """
    rows = _start(prompts, decoding.batch, limits)
    began = time.perf_counter()
    first = _prompt_logits(decoding, prompts)
    _append(rows, _processed(first, rows, processors), limits, step=0)
    marks = [time.perf_counter()]
    while any(row.finish is None for row in rows):
        last = [row.tokens[-1] if row.finish is None else limits.pad_token for row in rows]
        token = np.array(last, np.int64)
        position = np.array([_position(row, limits) for row in rows], np.int64)
        logits = decoding.step(token, position)
        _append(rows, _processed(logits, rows, processors), limits, step=len(marks))
        marks.append(time.perf_counter())
    return Decodes(
        sequences=tuple(_decoded(row) for row in rows),
        first_ms=(marks[0] - began) * 1e3,
        step_ms=tuple((b - a) * 1e3 for a, b in itertools.pairwise(marks)),
    )


def _start(prompts: Sequence[Sequence[int]], batch: int, limits: Limits) -> list[_Row]:
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
    return [_Row(tuple(prompt)) for prompt in prompts]


def _prompt_logits(decoding: Decoding, prompts: Sequence[Sequence[int]]) -> FloatArray:
    longest = max(len(prompt) for prompt in prompts)
    position = np.zeros(len(prompts), np.int64)
    if longest == 1:
        return decoding.step(np.array([prompt[0] for prompt in prompts], np.int64), position)
    tokens = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    last: IntArray = np.array([len(prompt) - 1 for prompt in prompts], np.int64)
    return decoding.prefill(tokens, position, last)


def _processed(
    logits: FloatArray, rows: Sequence[_Row], processors: Sequence[Processor]
) -> FloatArray:
    """Gives the logits after the processors; where there are none, the logits themselves."""
    if not processors:
        return logits
    logits = logits.copy()  # the backend owns them
    for row, values in zip(rows, logits, strict=True):
        if row.finish is None:
            sequence = row.sequence
            for process in processors:
                process(values, sequence, len(row.prompt))
    return logits


def _append(rows: list[_Row], logits: FloatArray, limits: Limits, step: int) -> None:
    tokens = logits.argmax(-1)
    best = np.take_along_axis(logits, tokens[:, None], -1)[:, 0]
    with np.errstate(invalid="ignore"):  # infinities and NaN are reported below
        scores = -np.log(np.exp(logits - best[:, None]).sum(-1))
    for index, row in enumerate(rows):
        if row.finish is not None:
            continue
        if np.isneginf(best[index]):
            raise BackendError(
                f"the rules of the bundle leave no token to sequence {index} at step {step}; "
                "export it with other suppressed tokens"
            )
        if not np.isfinite(scores[index]):
            raise BackendError(
                f"the logits of sequence {index} at step {step} are not finite; the variant "
                "overflows on this input, use one of higher precision"
            )
        row.tokens.append(int(tokens[index]))
        row.scores.append(float(scores[index]))
        length = len(row.prompt) + len(row.tokens)
        if row.tokens[-1] in limits.end_tokens:
            row.finish = "end"
        elif length >= limits.max_length or length > limits.capacity:
            row.finish = "length"


def _position(row: _Row, limits: Limits) -> int:
    """Gives where the newest token goes; a finished sequence stays where it is."""
    return min(len(row.prompt) + len(row.tokens) - 1, limits.capacity - 1)


def _decoded(row: _Row) -> Decoded:
    assert row.finish is not None
    return Decoded(tuple(row.tokens), tuple(row.scores), row.finish)

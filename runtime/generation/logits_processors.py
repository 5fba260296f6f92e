"""Processors: functions that change the logits of a sequence before its next token is chosen.

The processors and their order are those of `generate()` in Hugging Face transformers, with one
difference: all processors that exclude tokens come before those that force one, so that a forced
token is chosen even if it is suppressed. In a beam search they change the log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np

from hybrid_deploy.bundle.manifest import GenerationDefaults
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.generation.sequences import Limits

LogitsFunction: TypeAlias = Callable[[FloatArray, IntArray, int], None]
"""A plain function with the arguments of `Processor.__call__`; its stretch is unknown."""


@runtime_checkable
class Processor(Protocol):
    """Changes the logits of the next token of one sequence."""

    @property
    def stretch(self) -> float | None:
        """Largest factor by which the error of an approximate logit can grow in `__call__`.

        1 where tokens are only excluded or forced; None where no factor is known: tokens are then
        chosen from exact logits.
        """
        ...

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Changes the logits in place.

        Args:
            logits: (vocabulary,) float32.
            tokens: (length,), the sequence so far, with its prompt.
            prompt: number of tokens of the prompt.
        """
        ...


def stretch_of(processor: Processor | LogitsFunction) -> float | None:
    """Returns the stretch of a processor; None for a plain function, whose stretch is unknown."""
    return processor.stretch if isinstance(processor, Processor) else None


def processors_of(
    generation: GenerationDefaults,
    limits: Limits | None = None,
    allowed: Sequence[Processor] = (),
) -> tuple[Processor, ...]:
    """Returns the processors of generation settings, in their order; () if all are neutral.

    Args:
        generation: the generation settings of a bundle, with the user's changes.
        limits: limits of the sequences; None takes the `max_length` of `generation`.
        allowed: further processors, called after those that exclude tokens and before those that
            force one.
    """
    processors: list[Processor] = []
    if generation.repetition_penalty != 1:
        processors.append(RepetitionPenalty(generation.repetition_penalty))
    if generation.no_repeat_ngram > 0:
        processors.append(NoRepeatNgram(generation.no_repeat_ngram))
    if generation.suppressed:
        processors.append(Suppressed(_ids(generation.suppressed)))
    if generation.min_length > 0 and generation.end_tokens:
        processors.append(MinLength(generation.min_length, _ids(generation.end_tokens)))
    if generation.begin_suppressed:
        positions = frozenset(position for position, _ in generation.forced)
        processors.append(BeginSuppressed(_ids(generation.begin_suppressed), positions))
    processors.extend(allowed)
    if generation.forced:
        processors.append(Forced(dict(generation.forced)))
    if generation.forced_end is not None:
        length = generation.max_length
        limits = limits or Limits(generation.end_tokens, generation.pad_token, length, length)
        processors.append(ForcedEnd(generation.forced_end, limits))
    return tuple(processors)


@dataclass(frozen=True)
class RepetitionPenalty:
    """Makes tokens that occurred before less probable (arXiv:1909.05858, section 4.1)."""

    penalty: float

    @property
    def stretch(self) -> float:
        """Largest factor by which the error of a logit can grow."""
        return max(self.penalty, 1 / self.penalty)

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Divides positive logits of the tokens so far by the penalty; multiplies negative ones."""
        ids = _in_vocabulary(np.unique(tokens), logits)
        values = logits[ids]
        penalty = np.float32(self.penalty)
        logits[ids] = np.where(values < 0, values * penalty, values / penalty)


@dataclass(frozen=True)
class NoRepeatNgram:
    """Excludes tokens that would repeat a run of `size` tokens of the sequence."""

    stretch: ClassVar[float] = 1.0

    size: int

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Excludes every token that followed an earlier copy of the last `size` - 1 tokens."""
        if len(tokens) < self.size:
            return
        windows = np.lib.stride_tricks.sliding_window_view(tokens, self.size)
        matches = (windows[:, :-1] == tokens[len(tokens) + 1 - self.size :]).all(1)
        logits[_in_vocabulary(windows[matches, -1], logits)] = -np.inf


@dataclass(frozen=True)
class Suppressed:
    """Excludes `tokens` at every position."""

    stretch: ClassVar[float] = 1.0

    tokens: IntArray

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Sets the logits of the suppressed tokens to -inf."""
        logits[_in_vocabulary(self.tokens, logits)] = -np.inf


@dataclass(frozen=True)
class MinLength:
    """Excludes the end tokens until the sequence, with its prompt, has `length` tokens."""

    stretch: ClassVar[float] = 1.0

    length: int
    end_tokens: IntArray

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Sets the logits of the end tokens to -inf while the sequence is too short."""
        if len(tokens) < self.length:
            logits[_in_vocabulary(self.end_tokens, logits)] = -np.inf


@dataclass(frozen=True)
class Forced:
    """Forces tokens: `tokens` maps a position, counted with the prompt, to the token there."""

    stretch: ClassVar[float] = 1.0

    tokens: Mapping[int, int]

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Sets all other logits to -inf at that position."""
        token = self.tokens.get(len(tokens))
        if token is not None:
            logits[:] = -np.inf
            logits[token] = 0


@dataclass(frozen=True)
class ForcedEnd:
    """Forces `token` at the last position that `limits` allow."""

    stretch: ClassVar[float] = 1.0

    token: int
    limits: Limits

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Sets all other logits to -inf at that position."""
        max_new_tokens, _ = self.limits.max_tokens(prompt)
        if len(tokens) == prompt + max_new_tokens - 1:
            logits[:] = -np.inf
            logits[self.token] = 0


@dataclass(frozen=True)
class BeginSuppressed:
    """Excludes `tokens` at the first position after the prompt that is not in `forced`."""

    stretch: ClassVar[float] = 1.0

    tokens: IntArray
    forced: frozenset[int]

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Sets the logits of these tokens to -inf at that position."""
        position = prompt
        while position in self.forced:
            position += 1
        if len(tokens) == position:
            logits[_in_vocabulary(self.tokens, logits)] = -np.inf


@dataclass(frozen=True)
class TimestampRules:
    """Makes timestamps come in pairs that do not decrease (arXiv:2212.04356, section 2.3).

    The rules are those of `ApplyTimestampRules` in openai/whisper and of transformers. They need
    the exact logits of all tokens, because they compare a sum over all timestamps.

    Attributes:
        first: id of the timestamp of 0 s; all ids from it on are timestamps.
        no_timestamps: id of the token that asks for text without timestamps.
        end: id of the end token; ids below it are text.
        max_initial: index of the latest timestamp that may come first; None for no limit.
    """

    stretch: ClassVar[None] = None

    first: int
    no_timestamps: int
    end: int
    max_initial: int | None = None

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Excludes what the rules forbid next.

        1. The token for no timestamps never comes.
        2. The sequence begins with a timestamp, at most `max_initial`.
        3. After text and a timestamp comes a second timestamp or the end; after two comes text.
        4. No timestamp is below the one before, and no part is empty.
        5. A timestamp comes if all of them together are likelier than any single other token.
        """
        new = tokens[prompt:]
        times = new[new >= self.first]
        after_time = len(new) > 0 and new[-1] >= self.first
        pair_closed = len(new) < 2 or new[-2] >= self.first
        logits[self.no_timestamps] = -np.inf
        if after_time and pair_closed:
            logits[self.first :] = -np.inf
        elif after_time:
            logits[: self.end] = -np.inf
        if len(times):
            lowest = times[-1] + (0 if after_time and not pair_closed else 1)
            logits[self.first : lowest] = -np.inf
        if not len(new):
            logits[: self.first] = -np.inf
            if self.max_initial is not None:
                logits[self.first + self.max_initial + 1 :] = -np.inf
        if _log_sum(logits[self.first :]) > logits[: self.first].max():
            logits[: self.first] = -np.inf


def _log_sum(logits: FloatArray) -> float:
    """Returns the logarithm of the sum of the exponentials of logits; -inf if all are -inf."""
    largest = float(logits.max(initial=-np.inf))
    if largest == -np.inf:
        return largest
    return largest + float(np.log(np.exp(logits - np.float32(largest)).sum()))


def _ids(tokens: Sequence[int]) -> IntArray:
    return np.array(tokens, np.int64)


def _in_vocabulary(tokens: IntArray, logits: FloatArray) -> IntArray:
    """Returns the ids that have a logit: an embedding may have more rows than the head."""
    return tokens[tokens < len(logits)]

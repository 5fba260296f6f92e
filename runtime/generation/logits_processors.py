"""What changes the logits before the likeliest token is taken.

The rules and their order are those of `generate()` in Hugging Face transformers, but for what takes
tokens out: that comes before a token is forced, so that a forced token comes even if it is among
them. In a beam search they change the logarithms of the probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from hybrid_deploy.bundle.manifest import GenerationDefaults
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.generation.sequences import Limits


class Processor(Protocol):
    """A rule about the next token of one sequence.

    One that treats each logit by itself may have a `stretch`: how much larger the difference of
    two logits of one token can become. One that only takes tokens out has 1.
    """

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Changes the logits in place.

        Args:
            logits: (vocabulary,).
            tokens: (length,), the sequence so far with its prompt.
            prompt: how many of the tokens were given.
        """
        ...


def processors_of(
    generation: GenerationDefaults,
    limits: Limits | None = None,
    allowed: Sequence[Processor] = (),
) -> tuple[Processor, ...]:
    """Returns the rules that a bundle asks for, in their order; none if all are neutral.

    Args:
        generation: what it asks for.
        limits: where a sequence ends, if not at the `max_length` of `generation`.
        allowed: further rules, which see what the others leave, before a token is forced.
    """
    found: list[Processor] = []
    if generation.repetition_penalty != 1:
        found.append(RepetitionPenalty(generation.repetition_penalty))
    if generation.no_repeat_ngram > 0:
        found.append(NoRepeatNgram(generation.no_repeat_ngram))
    if generation.suppressed:
        found.append(Suppressed(_ids(generation.suppressed)))
    if generation.min_length > 0 and generation.end_tokens:
        found.append(MinLength(generation.min_length, _ids(generation.end_tokens)))
    if generation.begin_suppressed:
        begin = frozenset(position for position, _ in generation.forced)
        found.append(BeginSuppressed(_ids(generation.begin_suppressed), begin))
    found.extend(allowed)
    if generation.forced:
        found.append(Forced(dict(generation.forced)))
    if generation.forced_end is not None:
        length = generation.max_length
        limits = limits or Limits(generation.end_tokens, generation.pad_token, length, length)
        found.append(ForcedEnd(generation.forced_end, limits))
    return tuple(found)


@dataclass(frozen=True)
class RepetitionPenalty:
    """Makes tokens less likely that were there (arXiv:1909.05858, section 4.1)."""

    penalty: float

    @property
    def stretch(self) -> float:
        """How much larger a difference of logits can become."""
        return max(self.penalty, 1 / self.penalty)

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Divides positive logits and multiplies negative ones."""
        seen = _within(np.unique(tokens), logits)
        values = logits[seen]
        penalty = np.float32(self.penalty)
        logits[seen] = np.where(values < 0, values * penalty, values / penalty)


@dataclass(frozen=True)
class NoRepeatNgram:
    """Lets no `size` tokens come twice in the same order."""

    stretch: ClassVar[float] = 1.0

    size: int

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Takes out every token that came after the last `size` - 1 ones before."""
        if len(tokens) < self.size:
            return
        windows = np.lib.stride_tricks.sliding_window_view(tokens, self.size)
        same = (windows[:, :-1] == tokens[len(tokens) + 1 - self.size :]).all(1)
        logits[_within(windows[same, -1], logits)] = -np.inf


@dataclass(frozen=True)
class Suppressed:
    """Takes out tokens at every position."""

    stretch: ClassVar[float] = 1.0

    tokens: IntArray

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Takes them out."""
        logits[_within(self.tokens, logits)] = -np.inf


@dataclass(frozen=True)
class MinLength:
    """Takes out the end tokens until the sequence is long enough."""

    stretch: ClassVar[float] = 1.0

    length: int
    end_tokens: IntArray

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Takes them out of a short sequence."""
        if len(tokens) < self.length:
            logits[_within(self.end_tokens, logits)] = -np.inf


@dataclass(frozen=True)
class Forced:
    """Returns a token at a position, whatever the model says."""

    stretch: ClassVar[float] = 1.0

    tokens: Mapping[int, int]

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Takes out all others."""
        token = self.tokens.get(len(tokens))
        if token is not None:
            logits[:] = -np.inf
            logits[token] = 0


@dataclass(frozen=True)
class ForcedEnd:
    """Returns a token at the last position, whatever the model says."""

    stretch: ClassVar[float] = 1.0

    token: int
    limits: Limits

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Takes out all others."""
        most, _ = self.limits.most(prompt)
        if len(tokens) == prompt + most - 1:
            logits[:] = -np.inf
            logits[self.token] = 0


@dataclass(frozen=True)
class BeginSuppressed:
    """Takes out tokens at the first position after the prompt that is not forced."""

    stretch: ClassVar[float] = 1.0

    tokens: IntArray
    forced: frozenset[int]

    def __call__(self, logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        """Takes them out there."""
        begin = prompt
        while begin in self.forced:
            begin += 1
        if len(tokens) == begin:
            logits[_within(self.tokens, logits)] = -np.inf


def _ids(tokens: Sequence[int]) -> IntArray:
    return np.array(tokens, np.int64)


def _within(tokens: IntArray, logits: FloatArray) -> IntArray:
    """Leaves out ids that the model cannot give: an embedding may be larger than the head."""
    return tokens[tokens < len(logits)]

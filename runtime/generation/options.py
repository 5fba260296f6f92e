"""What a user may ask of a generation; what is left out is as the bundle says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.backends.protocol import IntArray

Allowed: TypeAlias = Callable[[IntArray], Sequence[int]]
"""Takes the tokens so far, with the prompt, and gives those that may come next."""


@dataclass(frozen=True)
class GenerateOptions:
    """How one generation differs from what the bundle does by itself; None leaves it as it is.

    Attributes:
        beams: how many sequences a beam search keeps; 1 takes the likeliest token each time.
        n_best: how many of them to give.
        length_penalty: exponent of the length in a beam's score; over 0 prefers long ones.
        early_stopping: when a beam search ends: True as soon as there are `beams` finished
            sequences, False when a better one is unlikely, "never" when it is impossible.
        temperature: draws tokens by chance; over 1 makes unlikely ones likelier.
        top_k: draws among so many likeliest tokens.
        top_p: draws among the likeliest tokens that hold this share of the probability.
        min_p: draws among tokens with at least this share of the likeliest one's probability.
        seed: makes drawing repeatable: of every sequence, or one for each.
        repetition_penalty: over 1, tokens that were there become less likely.
        no_repeat_ngram: no such number of tokens comes twice in the same order; 0 allows all.
        suppressed: tokens that never come.
        forced: tokens by the position where they come, the prompt included.
        min_length: no end token comes before this length, the prompt included.
        max_length: largest length, the prompt included.
        max_new_tokens: largest number of new tokens.
        stop: strings that end a sequence; its text ends before them.
        allowed: gives the tokens that may come next, or is a regular expression that the whole text
            matches when its end token comes.
        timeout_s: seconds after which no further token is begun.
        scores: whether to give the probability of every token.

    Raises:
        UsageError: a value is out of its range, or two do not go together.
    """

    beams: int | None = None
    n_best: int = 1
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | tuple[int, ...] | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram: int | None = None
    suppressed: tuple[int, ...] | None = None
    forced: Mapping[int, int] | None = None
    min_length: int | None = None
    max_length: int | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    allowed: Allowed | str | None = None
    timeout_s: float | None = None
    scores: bool = False

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn by chance."""
        filters = (self.temperature, self.top_k, self.top_p, self.min_p)
        return any(value is not None for value in filters)

    def __post_init__(self) -> None:
        for name in ("beams", "n_best", "max_length", "max_new_tokens"):
            self._at_least(name, 1)
        for name in ("top_k", "no_repeat_ngram", "min_length"):
            self._at_least(name, 0)
        for name in ("temperature", "repetition_penalty", "timeout_s"):
            self._over_zero(name)
        self._within("top_p", over_zero=True)
        self._within("min_p", over_zero=False)
        self._check_beams()
        if self.seed is not None and not self.draws:
            raise UsageError("a seed without sampling has no effect; give a temperature too")
        if not self.stop == tuple(s for s in self.stop if isinstance(s, str) and s):
            raise UsageError("a stop sequence is empty; give at least a character")

    def _check_beams(self) -> None:
        if self.draws and self.beams is not None and self.beams > 1:
            raise UsageError("beams and sampling do not go together; leave one of them out")
        if self.early_stopping not in (None, True, False, "never"):
            raise UsageError(
                f"early_stopping must be True, False or 'never', got {self.early_stopping!r}"
            )
        if self.length_penalty is not None and not math.isfinite(self.length_penalty):
            raise UsageError(f"length_penalty must be a number, got {self.length_penalty}")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and not (_is_whole(value) and value >= least):
            raise UsageError(f"{name} must be a whole number from {least} on, got {value!r}")

    def _over_zero(self, name: str) -> None:
        value = getattr(self, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{name} must be over 0, got {value!r}")

    def _within(self, name: str, *, over_zero: bool) -> None:
        value = getattr(self, name)
        if value is not None and not (0 <= value <= 1 and (value or not over_zero)):
            least = "over 0" if over_zero else "at least 0"
            raise UsageError(f"{name} must be {least} and at most 1, got {value!r}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


GREEDY = GenerateOptions(beams=1)
"""The likeliest token each time, also of bundles that ask for beams."""

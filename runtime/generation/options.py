"""The options that a user gives for one generation; None keeps the default of the bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from hybrid_deploy.argument_checks import (
    check_integer,
    check_text,
    is_number,
    shown,
    token_ids_of,
)
from hybrid_deploy.bundle.field_types import (
    MAX_BEAMS,
    MAX_LENGTH_PENALTY,
    MAX_POSITIVE,
    MIN_POSITIVE,
)
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.backends.protocol import IntArray

AllowedFunction: TypeAlias = Callable[[IntArray], Sequence[int]]
"""Takes the tokens so far, (length,) with the prompt; returns the ids that may come next."""

MAX_PATTERN_LENGTH = 10_000
"""Largest number of characters of a regular expression."""


@dataclass(frozen=True)
class GenerateOptions:
    """Options of one generation; None keeps the default of the bundle.

    Attributes:
        beams: number of beams of the beam search; 1 takes the most probable token at every step.
        n_best: number of sequences to return for each input; at most `beams`.
        length_penalty: exponent of the length that a beam's score is divided by; a value over 0
            prefers long sequences.
        early_stopping: when a beam search ends: True as soon as `beams` sequences have ended,
            False when a better one is unlikely, "never" when a better one is impossible.
        temperature: turns sampling on and divides the logits; over 1, improbable tokens become
            more probable.
        top_k: turns sampling on, among this number of most probable tokens; 0 samples among all.
        top_p: turns sampling on, among the most probable tokens that together hold this share of
            the probability, over 0 and at most 1.
        min_p: turns sampling on, among the tokens with at least this share, 0 to 1, of the
            probability of the most probable one.
        seed: seed of the sampling, for all sequences or one for each; it makes runs repeatable.
        repetition_penalty: factor over 0; over 1, tokens that occurred before become less probable.
        no_repeat_ngram: length of the token runs that may not occur twice; 0 allows repetition.
        suppressed: ids of tokens that are never chosen.
        begin_suppressed: ids of tokens that are not chosen first after the prompt.
        forced: token ids by the position that they are forced at, counted with the prompt.
        min_length: length, with the prompt, before which no end token is chosen.
        max_length: largest number of tokens, with the prompt.
        max_new_tokens: largest number of tokens after the prompt.
        stop: strings that end a sequence; the text of the result ends before them.
        allowed: function that returns the ids that may come next, or a regular expression that
            the whole text must match when an end token comes.
        timeout_s: seconds after which no further step starts, and a graph that ONNX Runtime runs on
            the CPU is ended before its next node.
        scores: whether results contain the log-probability of every token.
        language: code of the language that a multilingual speech model hears, such as `de`; "auto"
            takes the likeliest one of each input.
        task: task of a multilingual speech model: `transcribe`, or `translate` into English.
        timestamps: whether a speech model makes timestamps between the parts of its text.

    Raises:
        UsageError: a value is out of its range, or two options exclude each other.
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
    begin_suppressed: tuple[int, ...] | None = None
    forced: Mapping[int, int] | None = None
    min_length: int | None = None
    max_length: int | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    allowed: AllowedFunction | str | None = None
    timeout_s: float | None = None
    scores: bool = False
    language: str | None = None
    task: str | None = None
    timestamps: bool = False

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled: one of the sampling options is set."""
        sampling_options = (self.temperature, self.top_k, self.top_p, self.min_p)
        return any(value is not None for value in sampling_options)

    def __post_init__(self) -> None:
        check_integer("n_best", self.n_best, 1, MAX_BEAMS)  # None is no choice here
        for name in ("beams", "n_best"):
            self._check_integer(name, 1, MAX_BEAMS)
        for name in ("max_length", "max_new_tokens"):
            self._check_integer(name, 1)
        for name in ("top_k", "no_repeat_ngram", "min_length"):
            self._check_integer(name, 0)
        self._check_seed()
        self._check_tokens()
        for name in ("temperature", "repetition_penalty", "timeout_s"):
            self._check_number(name, MIN_POSITIVE, MAX_POSITIVE)
        self._check_number("length_penalty", -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY)
        self._check_share("top_p", allow_zero=False)
        self._check_share("min_p", allow_zero=True)
        self._check_beams()
        self._check_texts()
        for name in ("scores", "timestamps"):
            if not isinstance(value := getattr(self, name), bool):
                raise UsageError(f"{name} must be True or False, got {shown(value)}")
        for name in ("language", "task"):
            if (value := getattr(self, name)) is not None:
                check_text(name, value)

    def _check_seed(self) -> None:
        if isinstance(self.seed, tuple):
            for seed in self.seed or (None,):
                check_integer("each seed", seed, 0)
        else:
            self._check_integer("seed", 0)
        if self.seed is not None and not self.samples:
            raise UsageError("a seed without sampling has no effect; give a temperature too")

    def _check_tokens(self) -> None:
        for name in ("suppressed", "begin_suppressed"):
            if (tokens := getattr(self, name)) is not None:
                token_ids_of(name, tokens)
        if self.forced is None:
            return
        if not isinstance(self.forced, Mapping):
            raise UsageError(f"forced must map positions to tokens, got {shown(self.forced)}")
        for position in self.forced:
            check_integer("each position of forced", position, 0)
        token_ids_of("forced", self.forced.values())

    def _check_beams(self) -> None:
        if self.samples and self.beams is not None and self.beams > 1:
            raise UsageError("beams and sampling exclude each other; leave one of them out")
        if not (
            self.early_stopping is None
            or isinstance(self.early_stopping, bool)
            or self.early_stopping == "never"
        ):
            raise UsageError(
                f"early_stopping must be True, False or 'never', got {shown(self.early_stopping)}"
            )

    def _check_texts(self) -> None:
        if not isinstance(self.stop, tuple):
            raise UsageError(f"stop must be a tuple of texts, got {shown(self.stop)}")
        for text in self.stop:
            check_text("a stop string", text)
            if not text:
                raise UsageError("a stop string is empty; give at least one character")
        if self.allowed is None or callable(self.allowed):
            return
        check_text("a pattern", self.allowed)
        if len(self.allowed) > MAX_PATTERN_LENGTH:
            raise UsageError(
                f"the pattern has {len(self.allowed)} characters, at most {MAX_PATTERN_LENGTH} "
                "are taken; give a function as allowed"
            )

    def _check_integer(self, name: str, minimum: int, maximum: int | None = None) -> None:
        """Checks a whole number, and stores it as one of Python: those of numpy overflow."""
        if (value := getattr(self, name)) is not None:
            check_integer(name, value, minimum, maximum)
            object.__setattr__(self, name, int(value))

    def _check_number(self, name: str, minimum: float, maximum: float) -> None:
        value = getattr(self, name)
        if value is not None and not (is_number(value) and minimum <= value <= maximum):
            raise UsageError(f"{name} must be from {minimum:g} to {maximum:g}, got {shown(value)}")

    def _check_share(self, name: str, *, allow_zero: bool) -> None:
        value = getattr(self, name)
        if value is not None and not (
            is_number(value) and 0 <= value <= 1 and (value or allow_zero)
        ):
            minimum = "at least 0" if allow_zero else "over 0"
            raise UsageError(f"{name} must be {minimum} and at most 1, got {shown(value)}")


GREEDY = GenerateOptions(beams=1)
"""Takes the most probable token at every step, even where the bundle asks for a beam search."""

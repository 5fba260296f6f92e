"""What a bundle and a user ask for, as the generation loop follows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from hybrid_deploy.bundle.manifest import GenerationDefaults, Manifest
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.generation.constraints import AllowedTokens, Pattern
from hybrid_deploy.runtime.generation.incremental_text import (
    IncrementalDetokenizer,
    StopStrings,
    begin_reading,
)
from hybrid_deploy.runtime.generation.logits_processors import Processor, processors_of
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.generation.sampling import Sampling
from hybrid_deploy.runtime.generation.sequences import Limits


@dataclass(frozen=True)
class Beams:
    """How a beam search goes.

    Attributes:
        count: how many sequences are kept.
        n_best: how many of them are given.
        length_penalty: exponent of the length in a sequence's score.
        early_stopping: True ends with `count` finished sequences, False when a better one is
            unlikely, "never" when it is impossible.
    """

    count: int
    n_best: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def candidates(self, end_tokens: int) -> int:
        """Returns how many continuations are looked at: enough if all end tokens are among them."""
        return max(2, 1 + end_tokens) * self.count


@dataclass(frozen=True)
class DecodingSettings:
    """How tokens are chosen, and when a sequence ends.

    Attributes:
        limits: when a sequence ends.
        processors: what changes the logits first, in this order.
        sampling: how tokens are drawn; None takes the likeliest.
        beams: how a beam search goes; None keeps one sequence.
        stop: strings that end a sequence.
        scores: whether to give the probability of every token.
    """

    limits: Limits
    processors: tuple[Processor, ...] = ()
    sampling: Sampling | None = None
    beams: Beams | None = None
    stop: StopStrings | None = None
    scores: bool = False


def resolve_settings(
    manifest: Manifest, folder: Path, options: GenerateOptions
) -> DecodingSettings:
    """Returns the rules of a generation: the bundle's, as far as the options do not replace them.

    Args:
        manifest: the bundle's.
        folder: the bundle's, which holds the file of a tokenizer.
        options: what the user asks for.

    Raises:
        UsageError: the bundle has no vocabulary, which text needs, or values do not go together.
        MissingDependencyError: a regular expression is given, and `regex` is not installed.
    """
    defaults = _changed(manifest.generation, options)
    beams = _beams(defaults, options)
    limits = Limits(
        end_tokens=defaults.end_tokens,
        pad_token=defaults.pad_token,
        max_length=None if _only_new(options) else defaults.max_length,
        capacity=manifest.capacity,
        max_new_tokens=options.max_new_tokens,
    )
    read = _reader(manifest, folder)
    allowed: tuple[Processor, ...] = ()
    if isinstance(options.allowed, str):
        # Of the likeliest tokens only so many are needed; drawing and scores need all.
        everything = options.draws or options.scores
        needed = 1 if beams is None else beams.candidates(len(limits.end_tokens))
        count = None if everything else needed
        allowed = (Pattern(options.allowed, read("a pattern"), limits.end_tokens, count),)
    elif options.allowed is not None:
        allowed = (AllowedTokens(options.allowed),)
    return DecodingSettings(
        limits=limits,
        processors=processors_of(defaults, limits, allowed),
        sampling=_sampling(options),
        beams=beams,
        stop=StopStrings(options.stop, read("a stop sequence")) if options.stop else None,
        scores=options.scores,
    )


def _changed(defaults: GenerationDefaults, options: GenerateOptions) -> GenerationDefaults:
    names = (
        "repetition_penalty", "no_repeat_ngram", "suppressed", "min_length", "max_length", "beams",
        "length_penalty", "early_stopping",
    )  # fmt: skip
    given = {name: getattr(options, name) for name in names}
    changes = {name: value for name, value in given.items() if value is not None}
    if options.forced is not None:
        changes["forced"] = tuple(sorted(options.forced.items()))
    return msgspec.structs.replace(defaults, **changes)


def _only_new(options: GenerateOptions) -> bool:
    return options.max_new_tokens is not None and options.max_length is None


def _beams(defaults: GenerationDefaults, options: GenerateOptions) -> Beams | None:
    count = 1 if options.draws else defaults.beams
    if options.n_best > count:
        raise UsageError(
            f"the {options.n_best} best sequences need as many beams, there are {count}; give "
            f"beams={options.n_best} or more"
        )
    if count == 1:
        return None
    return Beams(count, options.n_best, defaults.length_penalty, defaults.early_stopping)


def _sampling(options: GenerateOptions) -> Sampling | None:
    if not options.draws:
        return None
    return Sampling(
        temperature=1.0 if options.temperature is None else options.temperature,
        top_k=options.top_k or 0,
        top_p=1.0 if options.top_p is None else options.top_p,
        min_p=options.min_p or 0.0,
        seed=options.seed,
    )


def _reader(manifest: Manifest, folder: Path) -> Callable[[str], IncrementalDetokenizer]:
    def begin(wanted_by: str) -> IncrementalDetokenizer:
        if manifest.vocabulary is None:
            raise UsageError(
                f"{folder} has no vocabulary, so {wanted_by} cannot be compared with its text; "
                "export it with one, or work with tokens"
            )
        return begin_reading(manifest.vocabulary, folder)

    return begin

"""The settings of one generation: the bundle's defaults, overridden by the user's options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from hybrid_deploy.bundle.manifest import GenerationDefaults, Manifest
from hybrid_deploy.bundle.speech.speech_tokens import speech_tokens_of
from hybrid_deploy.errors import BundleError, UsageError
from hybrid_deploy.runtime.generation.constraints import AllowedTokens, Pattern
from hybrid_deploy.runtime.generation.incremental_text import (
    IncrementalDetokenizer,
    StopStrings,
    empty_detokenizer,
)
from hybrid_deploy.runtime.generation.logits_processors import (
    LogitsFunction,
    Processor,
    TimestampRules,
    processors_of,
)
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.generation.sampling import Sampling
from hybrid_deploy.runtime.generation.sequences import Limits, pad_token_of, vocabulary_size
from hybrid_deploy.runtime.tokenizer import TokenizerSource


@dataclass(frozen=True)
class Beams:
    """The settings of a beam search.

    Attributes:
        count: number of beams of each input.
        n_best: number of sequences to return for each input.
        length_penalty: exponent of the length that a sequence's score is divided by.
        early_stopping: True ends the search with `count` ended sequences, False when a better
            one is unlikely, "never" when a better one is impossible.
    """

    count: int
    n_best: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def candidates(self, end_tokens: int) -> int:
        """Returns the number of continuations to rank in a step.

        It is so large that `count` of them go on even if the others are all end tokens.
        """
        return max(2, 1 + end_tokens) * self.count


@dataclass(frozen=True)
class DecodingSettings:
    """How tokens are chosen, and when a sequence ends.

    Attributes:
        limits: end tokens and largest lengths of a sequence.
        processors: functions that change the logits before a token is chosen, in this order.
        sampling: how tokens are sampled; None takes the most probable one.
        beams: settings of the beam search; None decodes one sequence for each input.
        stop: strings that end a sequence; None if there are none.
        scores: whether results contain the log-probability of every token.
    """

    limits: Limits
    processors: tuple[Processor | LogitsFunction, ...] = ()
    sampling: Sampling | None = None
    beams: Beams | None = None
    stop: StopStrings | None = None
    scores: bool = False


def resolve_settings(
    manifest: Manifest, source: TokenizerSource, options: GenerateOptions
) -> DecodingSettings:
    """Returns the settings of a generation: the options, and the bundle's defaults for the rest.

    Args:
        manifest: manifest of the bundle.
        source: holds the bundle's tokenizer.
        options: options that the user gives.

    Raises:
        UsageError: an option needs a vocabulary that the bundle lacks, names a token outside the
            model's vocabulary, excludes another option, or `allowed` is no regular expression.
        MissingDependencyError: a regular expression is given, and `regex` is not installed.
    """
    _check_token_ids(manifest, options)
    defaults = _override(manifest.generation, options)
    beams = _beams(defaults, options)
    limits = Limits(
        end_tokens=defaults.end_tokens,
        pad_token=pad_token_of(manifest),
        max_length=None if _limits_only_new_tokens(options) else defaults.max_length,
        capacity=manifest.capacity,
        max_new_tokens=options.max_new_tokens,
    )
    detokenizer_for = _detokenizer_factory(manifest, source)
    constraints = _constraints(options, beams, limits, detokenizer_for)
    if options.timestamps:
        constraints = (_timestamp_rules(manifest, str(source)), *constraints)
    return DecodingSettings(
        limits=limits,
        processors=processors_of(defaults, limits, constraints),
        sampling=_sampling(options),
        beams=beams,
        stop=StopStrings(options.stop, detokenizer_for("a stop string")) if options.stop else None,
        scores=options.scores,
    )


def check_default_tokens(manifest: Manifest, origin: str) -> None:
    """Checks the token ids in the generation defaults of a bundle.

    The decoder may read more tokens than it chooses from, so that start tokens and the pad token
    are only checked to be no negative ids, which would count from the end.

    Args:
        manifest: manifest of the bundle.
        origin: name of the bundle in messages.

    Raises:
        BundleError: an id is negative, or names a token that the model cannot choose.
    """
    defaults = manifest.generation
    chosen = {
        "an end token": defaults.end_tokens,
        "a suppressed token": (*defaults.suppressed, *defaults.begin_suppressed),
        "a forced token": [token for _, token in defaults.forced],
        "the forced end token": () if defaults.forced_end is None else (defaults.forced_end,),
    }
    read = {"a start token": defaults.start_tokens, "the pad token": (defaults.pad_token,)}
    if (speech := manifest.speech) is not None:
        ids = (speech.no_timestamps, speech.no_speech, *speech.languages.values())
        chosen["a token of speech"] = [token for token in ids if token is not None]
    last = vocabulary_size(manifest) - 1
    for role, tokens in {**read, **chosen}.items():
        outside = [token for token in tokens if token < 0 or (role in chosen and token > last)]
        if outside:
            raise BundleError(
                f"{origin} has {outside[0]} as {role}, expected an id from 0 to {last}; "
                "export it again"
            )


def _check_token_ids(manifest: Manifest, options: GenerateOptions) -> None:
    """Refuses tokens that the model cannot choose; GenerateOptions refuses negative ones."""
    size = vocabulary_size(manifest)
    named = {
        "suppressed": options.suppressed or (),
        "begin_suppressed": options.begin_suppressed or (),
        "forced": () if options.forced is None else options.forced.values(),
    }
    for option, tokens in named.items():
        if (largest := max(tokens, default=0)) >= size:
            raise UsageError(f"{option} has token {largest}, the model's last is {size - 1}")


def _override(defaults: GenerationDefaults, options: GenerateOptions) -> GenerationDefaults:
    names = (
        "repetition_penalty", "no_repeat_ngram", "suppressed", "begin_suppressed", "min_length",
        "max_length", "beams", "length_penalty", "early_stopping",
    )  # fmt: skip
    values = {name: getattr(options, name) for name in names}
    changes = {name: value for name, value in values.items() if value is not None}
    if options.forced is not None:
        changes["forced"] = tuple(sorted(options.forced.items()))
    return msgspec.structs.replace(defaults, **changes)


def _limits_only_new_tokens(options: GenerateOptions) -> bool:
    return options.max_new_tokens is not None and options.max_length is None


def _beams(defaults: GenerationDefaults, options: GenerateOptions) -> Beams | None:
    count = 1 if options.samples else defaults.beams
    if options.n_best > count:
        raise UsageError(
            f"the {options.n_best} best sequences need as many beams, there are {count}; give "
            f"beams={options.n_best} or more"
        )
    if count == 1:
        return None
    return Beams(count, options.n_best, defaults.length_penalty, defaults.early_stopping)


def _constraints(
    options: GenerateOptions,
    beams: Beams | None,
    limits: Limits,
    detokenizer_for: Callable[[str], IncrementalDetokenizer],
) -> tuple[Processor, ...]:
    """Returns the processor of the option `allowed`, if it is given."""
    if isinstance(options.allowed, str):
        # Greedy decoding and beam search use only the best tokens; sampling and scores use all.
        uses_all = options.samples or options.scores
        best = 1 if beams is None else beams.candidates(len(limits.end_tokens))
        needed = None if uses_all else best
        detokenizer = detokenizer_for("a pattern")
        return (Pattern(options.allowed, detokenizer, limits.end_tokens, needed),)
    return () if options.allowed is None else (AllowedTokens(options.allowed),)


def _timestamp_rules(manifest: Manifest, origin: str) -> TimestampRules:
    """Returns the processor of the option `timestamps`."""
    speech = speech_tokens_of(manifest.speech, origin)
    first, ends = speech.first_timestamp, manifest.generation.end_tokens
    return TimestampRules(first, first - 1, ends[0] if ends else 0, speech.max_initial_timestamp)


def _sampling(options: GenerateOptions) -> Sampling | None:
    if not options.samples:
        return None
    return Sampling(
        temperature=1.0 if options.temperature is None else options.temperature,
        top_k=options.top_k or 0,
        top_p=1.0 if options.top_p is None else options.top_p,
        min_p=options.min_p or 0.0,
        seed=options.seed,
    )


def _detokenizer_factory(
    manifest: Manifest, source: TokenizerSource
) -> Callable[[str], IncrementalDetokenizer]:
    """Returns a function from an option's name, for messages, to the empty detokenizer."""

    def detokenizer_for(option: str) -> IncrementalDetokenizer:
        if manifest.vocabulary is None:
            raise UsageError(
                f"{source} has no vocabulary, so {option} cannot be compared with its text; "
                "export it with one, or work with tokens"
            )
        return empty_detokenizer(manifest.vocabulary, source)

    return detokenizer_for

"""Decodes a window again at a higher temperature if its text repeats itself or is improbable."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hybrid_deploy.argument_checks import is_number, shown
from hybrid_deploy.bundle.field_types import MAX_POSITIVE
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.generation.logits import prompt_logits
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.generation.sequences import vocabulary_size
from hybrid_deploy.runtime.session.encoded_input import EncodedInput
from hybrid_deploy.runtime.session.results import GenerationResult, Timings
from hybrid_deploy.runtime.session.session import Session

_SEED = 0
"""Seed of the sampling unless the options have one, so that a recording gives the same text."""


@dataclass(frozen=True)
class FallbackRules:
    """When a window's text is rejected (arXiv:2212.04356, section 4.5).

    Attributes:
        temperatures: temperatures to decode at, one after the other; 0 takes the likeliest tokens.
        compression_ratio: size of the tokens divided by their size behind zlib; over it, a text
            repeats itself and is rejected.
        log_probability: mean log-probability of the tokens; below it, a text is rejected.
        no_speech: probability that nobody speaks; over it, a window whose text would be rejected
            for its log-probability counts as silent.

    Raises:
        UsageError: there is no temperature, or a number is out of its range.
    """

    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio: float = 2.4
    log_probability: float = -1.0
    no_speech: float = 0.6

    def __post_init__(self) -> None:
        limits = (self.compression_ratio, self.log_probability, self.no_speech)
        numbers = (*self.temperatures, *limits)
        if not self.temperatures or not all(map(is_number, numbers)):
            raise UsageError(f"fallback rules are numbers, got {shown(numbers)}")
        if not all(0 <= t <= MAX_POSITIVE for t in self.temperatures):
            raise UsageError(f"temperatures start from 0, got {shown(self.temperatures)}")


NO_FALLBACK = FallbackRules((0.0,), MAX_POSITIVE, -MAX_POSITIVE, 1.0)
"""Decodes each window once, and keeps every text."""


@dataclass(frozen=True)
class WindowResult:
    """What was decoded of one window.

    Attributes:
        result: tokens and text at the last temperature.
        timings: times of all temperatures together.
        temperature: the last temperature.
        silent: whether nobody speaks, so that the text is to be left out.
    """

    result: GenerationResult
    timings: Timings
    temperature: float
    silent: bool


def decode_window(
    session: Session,
    encoded: EncodedInput,
    prompt: Sequence[int],
    options: GenerateOptions,
    rules: FallbackRules,
) -> WindowResult:
    """Decodes a window at rising temperatures until its text is accepted.

    Args:
        session: session that decodes.
        encoded: the window, a batch of one.
        prompt: ids of tokens before the start tokens; () for none.
        options: options of the generation; a temperature over 0 replaces its own, and its beams.
        rules: when a text is rejected.
    """
    vocabulary = vocabulary_size(session.bundle.manifest)
    silence: float | None = None
    decoded = []
    for temperature in rules.temperatures:
        result, timings = _decode(session, encoded, prompt, options, temperature)
        decoded.append(timings)
        probability = mean_log_probability(result)
        improbable = probability < rules.log_probability
        if improbable and silence is None:
            silence = no_speech_probability(session, encoded, prompt)
        silent = improbable and silence is not None and silence > rules.no_speech
        ratio = compression_ratio(result.tokens, vocabulary)
        rejected = improbable or ratio > rules.compression_ratio
        if silent or not rejected or result.finish in ("timeout", "cancelled"):
            break
    return WindowResult(result, _sum(encoded, decoded), temperature, silent)


def compression_ratio(tokens: Sequence[int], vocabulary: int) -> float:
    """Returns the size of tokens divided by their size behind zlib, as transformers computes it.

    Args:
        tokens: ids of the tokens, with the end token; at least one.
        vocabulary: number of tokens of the model, which sets the bytes of an id.
    """
    width = int(math.log2(vocabulary) / 8) + 1
    data = b"".join(int(token).to_bytes(width, "little") for token in tokens)
    return len(data) / len(zlib.compress(data))


def mean_log_probability(result: GenerationResult) -> float:
    """Returns the mean natural logarithm of the tokens' probabilities; 0 without tokens."""
    return float(np.mean(result.scores)) if result.scores else 0.0


def no_speech_probability(
    session: Session, encoded: EncodedInput, prompt: Sequence[int] = ()
) -> float | None:
    """Returns the probability that nobody speaks; None if the model has no token for that.

    Args:
        session: session that decodes.
        encoded: the window, a batch of one.
        prompt: ids of tokens before the start token.
    """
    speech = session.bundle.manifest.speech
    if speech is None or speech.no_speech is None:
        return None
    decoding = encoded.start(session.backend)
    logits = prompt_logits(decoding, [[*prompt, speech.start]])[0].astype(np.float64)
    weights = np.exp(logits - logits.max())
    return float(weights[speech.no_speech] / weights.sum())


def _decode(
    session: Session,
    encoded: EncodedInput,
    prompt: Sequence[int],
    options: GenerateOptions,
    temperature: float,
) -> tuple[GenerationResult, Timings]:
    options = replace(options, scores=True)
    if temperature > 0:
        seed = _SEED if options.seed is None else options.seed
        options = replace(options, beams=1, n_best=1, temperature=temperature, seed=seed)
    (result,), timings = session.run_encoded(encoded, prompt=prompt, options=options)
    return result, timings


def _sum(encoded: EncodedInput, decoded: Sequence[Timings]) -> Timings:
    """Returns the times of a window: encoded once, decoded several times."""
    steps: Iterator[float] = (step for timings in decoded for step in timings.step_ms)
    return Timings(
        preprocess_ms=encoded.preprocess_ms,
        encoder_ms=encoded.encoder_ms,
        first_token_ms=sum(timings.first_token_ms for timings in decoded),
        step_ms=tuple(steps),
        notes=decoded[-1].notes,
    )

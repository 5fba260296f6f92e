"""The results of a session: tokens and text of every input, and the time of every stage."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_deploy.runtime.generation.sequences import FinishReason


@dataclass(frozen=True)
class GenerationResult:
    """The result of one input.

    Attributes:
        text: text of the tokens, up to a stop string; None if the bundle has no vocabulary.
        tokens: ids of the new tokens, without the prompt, with the end token.
        scores: natural logarithm of each token's probability, after the logits processors; None
            unless `GenerateOptions.scores` is set.
        finish: why the sequence ended: `end` by an end token, `stop` by a stop string, `length`
            at the largest length that was asked for, `capacity` because the caches are full,
            `timeout`, or `cancelled`.
        sequence_score: number that a beam search ranks the sequence by: the sum of its scores
            divided by length ** length_penalty; None without beam search.
        alternatives: the next best sequences of a beam search, the best one first; together with
            this one at most `n_best`.
        language: code of the language that was detected; None unless that was asked for.
    """

    text: str | None
    tokens: tuple[int, ...]
    scores: tuple[float, ...] | None
    finish: FinishReason
    sequence_score: float | None = None
    alternatives: tuple[GenerationResult, ...] = ()
    language: str | None = None


@dataclass(frozen=True)
class Timings:
    """The times of one batch, in milliseconds.

    Attributes:
        preprocess_ms: time from the files to the encoder inputs.
        encoder_ms: time of the encoder.
        first_token_ms: time from the end of the encoder to the first token.
        step_ms: time of each later step.
        notes: remarks of the backend for the user.
    """

    preprocess_ms: float
    encoder_ms: float
    first_token_ms: float
    step_ms: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @property
    def total_ms(self) -> float:
        """Milliseconds from the files to the last token."""
        return self.preprocess_ms + self.encoder_ms + self.first_token_ms + sum(self.step_ms)

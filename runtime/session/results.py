"""What a session gives: the text of every input, and how long the stages took."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_deploy.runtime.generation.sequences import FinishReason


@dataclass(frozen=True)
class GenerationResult:
    """What was made of one input.

    Attributes:
        text: the tokens as text, up to a stop sequence; None if the bundle has no vocabulary.
        tokens: the new tokens, the end token included.
        scores: natural logarithm of each token's probability, after the rules of the bundle; None
            unless `GenerateOptions.scores` asks for them.
        finish: why it ended: `end` after the end token, `stop` after a stop sequence, `length` and
            `capacity` when the limit was reached or the caches were full, `timeout`, `cancelled`.
        total: what a beam search ranks it by; None without one.
        others: of a beam search the next best, the best first, as many as `n_best` asks for.
    """

    text: str | None
    tokens: tuple[int, ...]
    scores: tuple[float, ...] | None
    finish: FinishReason
    sequence_score: float | None = None
    alternatives: tuple[GenerationResult, ...] = ()


@dataclass(frozen=True)
class Timings:
    """How long the stages of one batch took, in milliseconds.

    Attributes:
        first_token_ms: from the end of the encoder to the first token.
        step_ms: of every later token.
        notes: what the backend had to say.
    """

    preprocess_ms: float
    encoder_ms: float
    first_token_ms: float
    step_ms: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @property
    def total_ms(self) -> float:
        """From the files to the last token."""
        return self.preprocess_ms + self.encoder_ms + self.first_token_ms + sum(self.step_ms)

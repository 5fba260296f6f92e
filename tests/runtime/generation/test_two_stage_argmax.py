"""Approximate logits lead to the tokens of exact ones, with few logits computed exactly."""

from __future__ import annotations

import numpy as np
import pytest

from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.generation.constraints import AllowedTokens
from hybrid_deploy.runtime.generation.logits_processors import (
    BeginSuppressed,
    LogitsFunction,
    MinLength,
    NoRepeatNgram,
    Processor,
    RepetitionPenalty,
    Suppressed,
    stretch_of,
)
from hybrid_deploy.runtime.generation.sampling import Sampling
from hybrid_deploy.runtime.generation.sequences import Limits
from hybrid_deploy.runtime.generation.settings import DecodingSettings
from hybrid_deploy.runtime.generation.token_loop import TokenLoop

WORDS, END, LENGTH = 200, 0, 30


class NoisyDecoding:
    """A decoding with exact logits by token and position, and approximate ones near them.

    Attributes:
        noise: difference of the approximate logits, at most `error_bound`.
        newest: positions and tokens of the newest step, (batch,) each.
        exact_counts: number of tokens of every call of `exact_logits`.
    """

    def __init__(self, batch: int, *, noise: float = 1.0, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.batch = batch
        self.table = rng.normal(size=(LENGTH + 1, WORDS, WORDS)).astype(np.float32)
        self.noise = np.float32(noise) * rng.uniform(-1, 1, size=self.table.shape)
        self.error_bound: FloatArray | None = np.full(batch, noise, np.float32)
        self.newest: tuple[IntArray, IntArray] = (np.zeros(0, int), np.zeros(0, int))
        self.exact_counts: list[int] = []

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        return self.step(tokens[np.arange(self.batch), last], position + last)

    def prefill_approximate(
        self, tokens: IntArray, position: IntArray, last: IntArray
    ) -> FloatArray:
        return self.step_approximate(tokens[np.arange(self.batch), last], position + last)

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        self.newest = (position.copy(), token.copy())
        exact: FloatArray = self.table[self.newest]
        return exact

    def step_approximate(self, token: IntArray, position: IntArray) -> FloatArray:
        self.newest = (position.copy(), token.copy())
        approximate: FloatArray = (self.table + self.noise)[self.newest].astype(np.float32)
        return approximate

    def exact_logits(self, row: int, tokens: IntArray) -> FloatArray:
        self.exact_counts.append(len(tokens))
        position, token = self.newest
        exact: FloatArray = self.table[position[row], token[row], tokens]
        return exact


class ExactDecoding(NoisyDecoding):
    """The same decoding without approximate logits."""

    error_bound = None

    def __init__(self, batch: int) -> None:
        super().__init__(batch)
        self.error_bound = None


def decoded(decoding: NoisyDecoding, settings: DecodingSettings) -> list[tuple[int, ...]]:
    prompts = [[1 + row, 3][: 1 + row % 2] for row in range(decoding.batch)]
    return [row.tokens for row in TokenLoop(decoding, prompts, settings).run().sequences]


def settings(
    *processors: Processor | LogitsFunction,
    sampling: Sampling | None = None,
    scores: bool = False,
) -> DecodingSettings:
    limits = Limits((END,), 0, LENGTH, LENGTH)
    return DecodingSettings(limits, processors, sampling=sampling, scores=scores)


@pytest.mark.parametrize(
    "processors",
    [
        (),
        (Suppressed(np.arange(100)),),
        (RepetitionPenalty(1.7),),
        (RepetitionPenalty(0.6), NoRepeatNgram(2)),
        (MinLength(20, np.array([END])), BeginSuppressed(np.arange(1, 150), frozenset())),
    ],
)
@pytest.mark.parametrize("batch", [1, 5])
def test_tokens_are_those_of_exact_logits(batch: int, processors: tuple[Processor, ...]) -> None:
    approximate = NoisyDecoding(batch)
    expected = decoded(ExactDecoding(batch), settings(*processors))
    assert decoded(approximate, settings(*processors)) == expected
    assert approximate.exact_counts, "some tokens need exact logits"
    assert max(approximate.exact_counts) < WORDS


def test_approximate_logits_alone_lead_to_other_tokens() -> None:
    decoding = NoisyDecoding(5)
    decoding.error_bound = np.zeros(5, np.float32)
    assert decoded(decoding, settings()) != decoded(ExactDecoding(5), settings())


def test_a_single_candidate_needs_no_exact_logits() -> None:
    decoding = NoisyDecoding(1, noise=0)
    decoded(decoding, settings())
    assert decoding.exact_counts == []


def test_scores_and_sampling_take_exact_logits() -> None:
    approximate, exact = NoisyDecoding(3), ExactDecoding(3)
    for each in (settings(scores=True), settings(sampling=Sampling(temperature=0.7, seed=5))):
        assert decoded(approximate, each) == decoded(exact, each)
    assert approximate.exact_counts == []


def negate(logits: FloatArray, tokens: IntArray, prompt: int) -> None:
    logits *= -1


@pytest.mark.parametrize("processor", [negate, AllowedTokens(lambda tokens: [5, 60, 170])])
def test_processors_without_a_known_stretch_take_exact_logits(
    processor: Processor | LogitsFunction,
) -> None:
    assert stretch_of(processor) is None
    approximate = NoisyDecoding(3)
    expected = decoded(ExactDecoding(3), settings(processor))
    assert decoded(approximate, settings(processor)) == expected
    assert approximate.exact_counts == []


def test_stretch_of_a_repetition_penalty_is_its_factor() -> None:
    assert [stretch_of(RepetitionPenalty(factor)) for factor in (1.5, 0.5)] == [1.5, 2.0]


def test_an_error_bound_that_is_nan_is_an_overflow() -> None:
    decoding = NoisyDecoding(2)
    decoding.error_bound = np.array([0.1, np.nan], np.float32)
    with pytest.raises(BackendError, match=r"^the logits of sequence 1 at step 0 are not finite"):
        decoded(decoding, settings())

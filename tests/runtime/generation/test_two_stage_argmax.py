"""Tokens chosen from rough logits are those of the exact ones, for as few of them as possible."""

from __future__ import annotations

import numpy as np
import pytest

from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.generation.logits_processors import (
    BeginSuppressed,
    MinLength,
    NoRepeatNgram,
    Processor,
    RepetitionPenalty,
    Suppressed,
)
from hybrid_deploy.runtime.generation.sampling import Sampling
from hybrid_deploy.runtime.generation.sequences import Limits
from hybrid_deploy.runtime.generation.settings import DecodingSettings
from hybrid_deploy.runtime.generation.token_loop import TokenLoop

WORDS, END, LENGTH = 200, 0, 30


class NoisyDecoding:
    """Exact logits by token and position, and rough ones that are off by a margin at most."""

    def __init__(self, batch: int, *, noise: float = 1.0, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.batch = batch
        self.table = rng.normal(size=(LENGTH + 1, WORDS, WORDS)).astype(np.float32)
        self.noise = np.float32(noise) * rng.uniform(-1, 1, size=self.table.shape)
        self.error_bound: FloatArray | None = np.full(batch, noise, np.float32)
        self.place: tuple[IntArray, IntArray] = (np.zeros(0, int), np.zeros(0, int))
        self.asked: list[int] = []

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        return self.step(tokens[np.arange(self.batch), last], position + last)

    def prefill_approximate(
        self, tokens: IntArray, position: IntArray, last: IntArray
    ) -> FloatArray:
        return self.step_approximate(tokens[np.arange(self.batch), last], position + last)

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        self.place = (position.copy(), token.copy())
        exact: FloatArray = self.table[self.place]
        return exact

    def step_approximate(self, token: IntArray, position: IntArray) -> FloatArray:
        self.place = (position.copy(), token.copy())
        rough: FloatArray = (self.table + self.noise)[self.place].astype(np.float32)
        return rough

    def exact_logits(self, row: int, tokens: IntArray) -> FloatArray:
        self.asked.append(len(tokens))
        position, token = self.place
        exact: FloatArray = self.table[position[row], token[row], tokens]
        return exact


class ExactDecoding(NoisyDecoding):
    """The same without rough logits."""

    error_bound = None

    def __init__(self, batch: int) -> None:
        super().__init__(batch)
        self.error_bound = None


def decoded(decoding: NoisyDecoding, rules: DecodingSettings) -> list[tuple[int, ...]]:
    prompts = [[1 + row, 3][: 1 + row % 2] for row in range(decoding.batch)]
    return [row.tokens for row in TokenLoop(decoding, prompts, rules).run().sequences]


def rules(
    *processors: Processor, sampling: Sampling | None = None, scores: bool = False
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
    rough = NoisyDecoding(batch)
    expected = decoded(ExactDecoding(batch), rules(*processors))
    assert decoded(rough, rules(*processors)) == expected
    assert rough.asked, "rough logits leave something to settle"
    assert max(rough.asked) < WORDS


def test_rough_logits_alone_would_give_other_tokens() -> None:
    decoding = NoisyDecoding(5)
    decoding.error_bound = np.zeros(5, np.float32)
    assert decoded(decoding, rules()) != decoded(ExactDecoding(5), rules())


def test_one_candidate_is_not_asked_for() -> None:
    decoding = NoisyDecoding(1, noise=0)
    decoded(decoding, rules())
    assert decoding.asked == []


def test_scores_and_draws_take_exact_logits() -> None:
    rough, exact = NoisyDecoding(3), ExactDecoding(3)
    for wanted in (rules(scores=True), rules(sampling=Sampling(temperature=0.7, seed=5))):
        assert decoded(rough, wanted) == decoded(exact, wanted)
    assert rough.asked == []


def test_an_unknown_processor_takes_exact_logits() -> None:
    def backwards(logits: FloatArray, tokens: IntArray, prompt: int) -> None:
        logits *= -1

    rough = NoisyDecoding(3)
    assert decoded(rough, rules(backwards)) == decoded(ExactDecoding(3), rules(backwards))
    assert rough.asked == []


def test_a_margin_that_is_no_number_is_an_overflow() -> None:
    decoding = NoisyDecoding(2)
    decoding.error_bound = np.array([0.1, np.nan], np.float32)
    with pytest.raises(BackendError, match=r"^the logits of sequence 1 at step 0 are not finite"):
        decoded(decoding, rules())

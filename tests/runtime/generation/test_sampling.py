"""Sampling: the filters of transformers, correct frequencies, repeatable with a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hybrid_deploy.errors import BackendError, UsageError
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.generation.sampling import Sampling
from hybrid_deploy.runtime.generation.sequences import Limits
from hybrid_deploy.runtime.generation.settings import DecodingSettings
from hybrid_deploy.runtime.generation.token_loop import TokenLoop
from tests.closeness import assert_close_in_float32

VOCABULARY, LENGTH = 60, 20

FILTERS: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"temperature": 2.5},
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": 500},
    {"top_p": 0.6},
    {"top_p": 0.95},
    {"top_p": 0.001},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"temperature": 1.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
]


def transformers_probabilities(logits: FloatArray, options: dict[str, Any]) -> FloatArray:
    """Returns the probabilities that generate() samples with."""
    transformers = pytest.importorskip("transformers")
    import torch

    config = transformers.GenerationConfig(do_sample=True, **({"top_k": 0} | options))

    class Model(transformers.generation.GenerationMixin):  # type: ignore[misc, name-defined]
        config = transformers.BartConfig(vocab_size=VOCABULARY)

    warpers = Model()._get_logits_processor(config, input_ids_seq_length=1, device="cpu")
    assert len(warpers) == len(options)
    warped = warpers(torch.zeros(1, 1, dtype=torch.int64), torch.from_numpy(logits)[None])
    probabilities: FloatArray = warped.softmax(-1)[0].numpy()
    return probabilities


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_probabilities_are_those_of_transformers(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        logits = (3 * rng.standard_normal(VOCABULARY)).astype(np.float32)
        logits[rng.integers(0, VOCABULARY, 4)] = -np.inf  # excluded by processors
        weights = Sampling(**options).weights(logits.copy())
        assert_close_in_float32(
            weights / weights.sum(), transformers_probabilities(logits, options)
        )


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_k": 6}, {"top_p": 0.7}])
def test_frequencies_are_the_probabilities(options: dict[str, Any]) -> None:
    """Chi-square test; a correct sampler exceeds its bound once in a million times."""
    draws = 20_000
    logits = np.linspace(-2, 2, 12).astype(np.float32)
    sampling, random = Sampling(**options), np.random.default_rng(3)
    expected = sampling.weights(logits.copy())
    expected *= draws / expected.sum()
    counts = np.bincount([sampling.draw(logits, random) for _ in range(draws)], minlength=12)
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom) + 15
    # the test can fail: equal probabilities are far outside the bound
    wrong = np.where(possible, draws / possible.sum(), 0)
    assert ((counts - wrong)[possible] ** 2 / wrong[possible]).sum() > 1000


def test_a_draw_does_not_change_the_logits() -> None:
    logits = np.linspace(-2, 2, 12).astype(np.float32)
    before = logits.copy()
    Sampling(0.5, top_k=3, top_p=0.5, min_p=0.2).draw(logits, np.random.default_rng(0))
    np.testing.assert_array_equal(logits, before)


class RandomDecoding:
    """A decoding whose logits depend only on the token and its position.

    Args:
        batch: number of sequences.
        bad: value of the logit of token 7; None leaves it as it is.
    """

    def __init__(self, batch: int, bad: float | None = None) -> None:
        self.batch = batch
        self.bad = bad
        self.table = np.random.default_rng(5).standard_normal((LENGTH, VOCABULARY, VOCABULARY))

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        return self.step(tokens[np.arange(self.batch), last], position + last)

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        logits = self.table[position, token].astype(np.float32)
        if self.bad is not None:
            logits[:, 7] = self.bad
        return logits


def sampled(prompts: list[list[int]], sampling: Sampling) -> list[tuple[int, ...]]:
    settings = DecodingSettings(Limits((0,), 0, LENGTH, LENGTH), sampling=sampling)
    loop = TokenLoop(RandomDecoding(len(prompts)), prompts, settings)
    return [row.tokens for row in loop.run().sequences]


def test_a_seed_repeats_the_tokens_in_any_batch() -> None:
    prompts, seeded = [[1], [2, 3], [4]], Sampling(temperature=1.3, seed=11)
    together = sampled(prompts, seeded)
    assert together == sampled(prompts, seeded)
    assert together == [sampled([prompt], seeded)[0] for prompt in prompts]
    assert together == sampled(prompts[::-1], seeded)[::-1]
    assert together != sampled(prompts, Sampling(temperature=1.3, seed=12))


def test_every_sequence_may_have_a_seed_of_its_own() -> None:
    several = sampled([[1]] * 4, Sampling(seed=(1, 2, 3, 1)))
    assert several[0] == several[3]
    assert len(set(several)) == 3
    assert several[1] == sampled([[1]], Sampling(seed=2))[0]
    with pytest.raises(UsageError, match="2 seeds were given for 4 sequences"):
        sampled([[1]] * 4, Sampling(seed=(1, 2)))


def test_without_a_seed_runs_differ() -> None:
    assert len({sampled([[1]], Sampling(temperature=3.0))[0] for _ in range(4)}) > 1


def test_a_temperature_near_0_is_greedy() -> None:
    settings = DecodingSettings(Limits((0,), 0, LENGTH, LENGTH))
    (greedy,) = TokenLoop(RandomDecoding(1), [[1]], settings).run().sequences
    assert sampled([[1]], Sampling(temperature=1e-6)) == [greedy.tokens]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_logits_are_an_error(bad: float) -> None:
    settings = DecodingSettings(Limits((0,), 0, LENGTH, LENGTH), sampling=Sampling())
    with pytest.raises(BackendError, match="the logits of sequence 0 at step 0 are not finite"):
        TokenLoop(RandomDecoding(1, bad), [[1]], settings).run()

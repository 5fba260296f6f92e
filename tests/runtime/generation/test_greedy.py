"""Greedy decoding on a decoding made of numpy, which counts up to a chosen token."""

from __future__ import annotations

import numpy as np
import pytest

from hybrid_deploy.errors import BackendError, CapacityError, UsageError
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.generation.sequences import Limits
from hybrid_deploy.runtime.generation.token_loop import decode_greedily
from tests.closeness import assert_scores_close_in_float32
from tests.fakes.counting import END, LARGEST_LOGIT, PAD, VOCABULARY, CountingDecoding


def limits(max_length: int = 16, capacity: int = 16, end: int | None = END) -> Limits:
    ends = () if end is None else (end,)
    return Limits(end_tokens=ends, pad_token=PAD, max_length=max_length, capacity=capacity)


@pytest.mark.parametrize("count", range(1, 10))
def test_end_at_every_position(count: int) -> None:
    decoding = CountingDecoding([10 + count])
    (row,) = decode_greedily(decoding, [[10]], limits()).sequences
    assert row.tokens == (*range(11, 11 + count), END)
    assert row.finish == "end"
    assert decoding.cache[0, : count + 1].tolist() == list(range(10, 11 + count))


def test_each_row_ends_at_its_own_step() -> None:
    result = decode_greedily(CountingDecoding([12, 20, 10]), [[10]] * 3, limits())
    assert [len(row.tokens) for row in result.sequences] == [3, 11, 1]
    assert len(result.step_ms) == 10


def test_prompts_of_unequal_length_keep_their_own_positions() -> None:
    decoding = CountingDecoding([25, 35])
    rows = decode_greedily(decoding, [[20, 21, 22], [30]], limits()).sequences
    assert rows[0].tokens == (23, 24, 25, END)
    assert rows[1].tokens == (31, 32, 33, 34, 35, END)
    assert decoding.cache[0, :6].tolist() == [20, 21, 22, 23, 24, 25]
    assert decoding.cache[1, :6].tolist() == [30, 31, 32, 33, 34, 35]


def test_max_length_counts_the_prompt() -> None:
    (row,) = decode_greedily(CountingDecoding([99]), [[10, 11]], limits(max_length=5)).sequences
    assert (row.tokens, row.finish) == ((12, 13, 14), "length")


def test_capacity_is_never_exceeded() -> None:
    decoding = CountingDecoding([99], capacity=4)
    (row,) = decode_greedily(decoding, [[10]], limits(max_length=99, capacity=4)).sequences
    assert row.tokens == (11, 12, 13, 14)  # four positions hold 10 to 13; the last token needs none
    assert row.finish == "capacity"


def test_positions_of_a_finished_row_stay_in_the_cache() -> None:
    decoding = CountingDecoding([10, 30], capacity=16)
    rows = decode_greedily(decoding, [[10], [15]], limits(max_length=16)).sequences
    assert [row.finish for row in rows] == ["end", "length"]


def test_scores_are_log_probabilities() -> None:
    (row,) = decode_greedily(CountingDecoding([10]), [[10]], limits(), scores=True).sequences
    expected = LARGEST_LOGIT - np.log(np.exp(LARGEST_LOGIT) + VOCABULARY - 1)
    assert_scores_close_in_float32(row.scores, (expected,), LARGEST_LOGIT)


def test_model_without_end_token_runs_to_the_limit() -> None:
    decoding = CountingDecoding([10])
    (row,) = decode_greedily(decoding, [[10]], limits(max_length=4, end=None)).sequences
    assert len(row.tokens) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_logits_name_the_step(bad: float) -> None:
    class Failing(CountingDecoding):
        def step(self, token: IntArray, position: IntArray) -> FloatArray:
            logits = super().step(token, position)
            if self.steps == 3:
                logits[0, 7] = bad
            return logits

    message = "the logits of sequence 0 at step 2 are not finite"
    with pytest.raises(BackendError, match=message):
        decode_greedily(Failing([99]), [[10]], limits())


def test_prompt_longer_than_the_cache() -> None:
    with pytest.raises(CapacityError, match="a prompt of 5 tokens does not fit the decoder's 4"):
        decode_greedily(CountingDecoding([99]), [[1] * 5], limits(capacity=4))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([[]], "a prompt is empty"), ([[1], [1]], "one prompt for each of 1 sequences, got 2")],
)
def test_bad_prompts(prompts: list[list[int]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        decode_greedily(CountingDecoding([99]), prompts, limits())

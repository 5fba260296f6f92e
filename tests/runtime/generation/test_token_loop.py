"""The token loop: ends of sequences, shrinking batches, and blocks of steps on a device."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import numpy as np
import pytest

from hybrid_deploy.errors import BackendError, UsageError
from hybrid_deploy.runtime.backends.protocol import (
    FloatArray,
    GeneratesOnDevice,
    IntArray,
    ReorderableDecoding,
    StepBlock,
)
from hybrid_deploy.runtime.generation.logits_processors import Suppressed
from hybrid_deploy.runtime.generation.sequences import BatchResult, Cancellation, Limits
from hybrid_deploy.runtime.generation.settings import DecodingSettings
from hybrid_deploy.runtime.generation.token_loop import TokenLoop
from tests.closeness import assert_scores_close_in_float32
from tests.fakes.counting import (
    END,
    LARGEST_LOGIT,
    PAD,
    CountingDecoding,
    OnDeviceCounting,
    ReorderableCounting,
)

FOREVER = 49


def settings(
    max_length: int | None = 16, new: int | None = None, capacity: int = 16, scores: bool = False
) -> DecodingSettings:
    return DecodingSettings(Limits((END,), PAD, max_length, capacity, new), scores=scores)


def decode(
    decoding: CountingDecoding,
    chosen: DecodingSettings,
    prompts: list[list[int]] | None = None,
    cancellation: Cancellation | None = None,
) -> BatchResult:
    return TokenLoop(decoding, prompts or [[10]] * decoding.batch, chosen, cancellation).run()


@pytest.mark.parametrize(
    ("chosen", "prompt", "count", "finish"),
    [
        (settings(max_length=5), [10, 11], 3, "length"),
        (settings(max_length=None, new=4), [10, 11], 4, "length"),
        (settings(max_length=5, new=9), [10], 4, "length"),
        (settings(max_length=9, new=2), [10], 2, "length"),
        (settings(max_length=None, new=99, capacity=6), [10, 11], 5, "capacity"),
        (settings(max_length=99, capacity=6), [10], 6, "capacity"),
        (settings(max_length=7, capacity=6), [10], 6, "length"),
    ],
)
def test_where_a_sequence_ends_and_why(
    chosen: DecodingSettings, prompt: list[int], count: int, finish: str
) -> None:
    decoding = CountingDecoding([FOREVER], capacity=chosen.limits.capacity)
    (row,) = decode(decoding, chosen, [prompt]).sequences
    assert (len(row.tokens), row.finish) == (count, finish)


def test_a_prompt_that_leaves_no_room() -> None:
    with pytest.raises(
        UsageError, match=r"^a prompt of 3 tokens leaves no room in a sequence of 3"
    ):
        decode(CountingDecoding([FOREVER]), settings(max_length=3), [[10, 11, 12]])


def test_finished_sequences_are_dropped_once_half_have_ended() -> None:
    decoding = ReorderableCounting([12, 25, 11, 14])
    assert isinstance(decoding, ReorderableDecoding)
    rows = decode(decoding, settings(max_length=14)).sequences
    alone = [
        decode(CountingDecoding([stop]), settings(max_length=14)).sequences[0]
        for stop in (12, 25, 11, 14)
    ]
    assert list(rows) == alone
    # two sequences end after 3 tokens, a third after 5; the first call decodes the prompts
    assert decoding.batches == [4, 4, 4, 2, 2, *[1] * 8]


def test_a_decoding_that_is_not_resizable_keeps_all_sequences() -> None:
    decoding = ReorderableCounting([12, 25])
    decoding.resizable = False
    assert [len(row.tokens) for row in decode(decoding, settings()).sequences] == [3, 15]
    assert set(decoding.batches) == {2}


def test_nan_in_a_finished_sequence_is_ignored() -> None:
    class Failing(CountingDecoding):
        def step(self, token: IntArray, position: IntArray) -> FloatArray:
            logits = super().step(token, position)
            if self.steps > 3:
                logits[0] = np.nan
            return logits

    rows = decode(Failing([11, 20]), settings(scores=True)).sequences
    assert [row.finish for row in rows] == ["end", "end"]
    with pytest.raises(BackendError, match="the logits of sequence 0 at step 3 are not finite"):
        decode(Failing([14, 20]), settings())


def test_a_failed_step_does_not_affect_the_next_generation() -> None:
    class Failing(CountingDecoding):
        def step(self, token: IntArray, position: IntArray) -> FloatArray:
            raise BackendError("out of memory")

    with pytest.raises(BackendError, match="out of memory"):
        decode(Failing([12]), settings())
    assert decode(CountingDecoding([12]), settings()).sequences[0].finish == "end"


def test_blocks_of_steps_have_the_tokens_of_single_steps() -> None:
    for stops in ([12], [14], [11], [10], [12, 20, 13], [40, 40]):
        for block in (1, 3, 7):
            decoding = OnDeviceCounting(stops, block=block)
            assert isinstance(decoding, GeneratesOnDevice)
            blocks = decode(decoding, settings(scores=True))
            steps = decode(CountingDecoding(stops), settings(scores=True))
            for actual, expected in zip(blocks.sequences, steps.sequences, strict=True):
                assert (actual.tokens, actual.finish) == (expected.tokens, expected.finish)
                assert_scores_close_in_float32(actual.scores, expected.scores, LARGEST_LOGIT)
            assert len(blocks.step_ms) == len(steps.step_ms)
            assert decoding.steps == 1, "only the prompts are decoded by `step`"


def test_blocks_restart_with_the_remaining_sequences() -> None:
    decoding = OnDeviceCounting([12, 30, 13, 30])
    result = decode(decoding, settings(max_length=12))
    assert [len(row.tokens) for row in result.sequences] == [3, 11, 4, 11]
    # first all four; then the two that have not ended, after the tokens of complete blocks
    assert decoding.calls == [([11] * 4, [1] * 4), ([14, 14], [4, 4])]
    assert result.notes == ("steps were launched one by one: it counts",)


def test_recorded_steps_need_no_note() -> None:
    decoding = OnDeviceCounting([12])
    decoding.reason = None
    assert decode(decoding, settings()).notes == ()


def test_processors_prevent_blocks_of_steps() -> None:
    decoding = OnDeviceCounting([14])
    limits = settings().limits
    suppressed = DecodingSettings(limits, (Suppressed(np.array([12])),))
    TokenLoop(decoding, [[10]], suppressed).run()
    assert not decoding.calls


def test_single_steps_follow_when_the_blocks_end() -> None:
    decoding = OnDeviceCounting([19], max_blocks=2)
    (row,) = decode(decoding, settings()).sequences
    assert row.tokens == (*range(11, 20), END)
    assert (decoding.blocks, decoding.closed) == (2, 1)
    assert decoding.steps == 1 + 3  # the prompt; then 6 tokens in blocks; then 3 steps


def test_nan_in_a_block_names_the_step() -> None:
    class Failing(OnDeviceCounting):
        def step_blocks(
            self, token: IntArray, position: IntArray
        ) -> Generator[StepBlock, None, None]:
            scores = np.array([[-1.0], [np.nan]], np.float32)
            yield StepBlock(np.array([[20], [21]]), scores, "graph")

    with pytest.raises(BackendError, match="the logits of sequence 0 at step 2 are not finite"):
        decode(Failing([FOREVER]), settings())


@pytest.mark.parametrize("kind", [CountingDecoding, OnDeviceCounting])
def test_cancelled_between_two_tokens(kind: type[CountingDecoding]) -> None:
    decoding, cancel = kind([FOREVER, 11]), threading.Event()
    loop = TokenLoop(decoding, [[10]] * 2, settings(), Cancellation(cancel))
    for _ in loop.steps():
        if len(loop.rows[0].tokens) == 5:
            cancel.set()
    long, short = loop.batch_result().sequences
    assert (long.tokens, long.finish) == ((11, 12, 13, 14, 15), "cancelled")
    assert (short.tokens, short.finish) == ((11, END), "end")
    if isinstance(decoding, OnDeviceCounting):
        assert decoding.closed == 1


def test_the_deadline_returns_the_tokens_so_far() -> None:
    class Slow(CountingDecoding):
        def step(self, token: IntArray, position: IntArray) -> FloatArray:
            if self.steps == 3:
                time.sleep(0.3)
            return super().step(token, position)

    cancellation = Cancellation(deadline=time.perf_counter() + 0.2)
    (row,) = decode(Slow([FOREVER]), settings(), cancellation=cancellation).sequences
    assert row.finish == "timeout"
    assert row.tokens == (11, 12, 13, 14)[: len(row.tokens)] and row.tokens
    late = Cancellation(deadline=time.perf_counter())
    result = decode(CountingDecoding([FOREVER]), settings(), cancellation=late)
    assert (result.sequences[0].tokens, result.sequences[0].finish) == ((), "timeout")
    assert (result.first_ms, result.step_ms) == (0.0, ())

"""The intervals hold what they state, and what is paired is compared on the same inputs."""

from __future__ import annotations

import numpy as np
import pytest

from hybrid_deploy.accuracy.bootstrap import (
    RESAMPLES,
    Counts,
    Interval,
    draws,
    interval_of,
    interval_of_change,
    interval_of_values,
    resampled,
)

INPUTS = 60
RUNS = 200


def recordings(generator: np.random.Generator, inputs: int = INPUTS) -> tuple[Counts, Counts]:
    """Returns errors of a reference and of a variant that share the difficulty of each input.

    The number of words varies, and so does the share of wrong ones: most inputs are easy, some are
    hard. The variant gets a twentieth of the words wrong besides.
    """
    words = generator.integers(5, 40, inputs)
    difficulty = generator.beta(0.5, 4.5, inputs)  # 10 % on average
    wrong = generator.binomial(words, difficulty)
    further = generator.binomial(words - wrong, 0.05)
    lengths = words.astype(np.float64)
    return Counts(wrong.astype(np.float64), lengths), Counts(wrong + further * 1.0, lengths)


def test_intervals_hold_the_truth_as_often_as_stated() -> None:
    generator = np.random.default_rng(1)
    true_percent, true_change = 10.0, 4.5  # 5 % of the 90 % that are right
    held = changes_held = 0
    for _ in range(RUNS):
        reference, variant = recordings(generator)
        interval = interval_of(reference)
        change = interval_of_change(variant, reference)
        assert interval is not None and change is not None
        held += interval.low <= true_percent <= interval.high
        changes_held += change.low <= true_change <= change.high
    # the percentile interval of 60 skewed inputs holds some 92 to 95 %; the standard deviation of
    # a share over 200 runs is 1.7 %
    assert 0.87 <= held / RUNS <= 0.99
    assert 0.87 <= changes_held / RUNS <= 0.99


def test_an_interval_of_single_words_would_be_too_narrow() -> None:
    """Errors of one input go together, so inputs are drawn, not words."""
    reference, _ = recordings(np.random.default_rng(2))
    interval = interval_of(reference)
    assert interval is not None
    words, share = reference.wholes.sum(), reference.percent / 100
    binomial_width = 2 * 1.96 * 100 * np.sqrt(share * (1 - share) / words)
    assert interval.high - interval.low > 1.3 * binomial_width


def test_a_paired_interval_is_narrower_than_one_of_independent_inputs() -> None:
    reference, variant = recordings(np.random.default_rng(3))
    paired = interval_of_change(variant, reference)
    order = np.random.default_rng(4).permutation(INPUTS)
    shuffled = Counts(reference.parts[order], reference.wholes[order])
    unpaired = interval_of_change(variant, shuffled)
    assert paired is not None and unpaired is not None
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)
    assert variant.percent - reference.percent == pytest.approx(variant.percent - shuffled.percent)


def test_equal_texts_have_no_change() -> None:
    reference, _ = recordings(np.random.default_rng(5))
    assert interval_of_change(reference, reference) == Interval(0, 0)


def test_more_inputs_make_an_interval_narrower() -> None:
    generator = np.random.default_rng(6)
    few, many = (interval_of(recordings(generator, inputs)[0]) for inputs in (25, 2500))
    assert few is not None and many is not None
    assert (many.high - many.low) < 0.25 * (few.high - few.low)


def test_the_same_inputs_give_the_same_interval() -> None:
    reference, variant = recordings(np.random.default_rng(7))
    assert interval_of(reference) == interval_of(reference)
    both = resampled([variant, reference])
    assert np.array_equal(both[1], resampled([reference])[0])
    assert both.shape == (2, RESAMPLES)


def test_a_draw_holds_whole_inputs_with_repetitions() -> None:
    counts = Counts(np.array([1.0, 0.0]), np.array([1.0, 3.0]))
    (percents,) = resampled([counts])
    assert set(np.round(percents, 6)) == {0.0, 25.0, 100.0}
    assert np.mean(percents == 25) == pytest.approx(0.5, abs=0.05)


def test_a_single_input_has_no_interval() -> None:
    assert interval_of(Counts(np.array([1.0]), np.array([4.0]))) is None


def test_draws_without_any_character_are_left_out() -> None:
    counts = Counts(np.array([1.0, 0.0]), np.array([4.0, 0.0]))
    assert interval_of(counts) == Interval(25, 25)
    assert interval_of(Counts(np.zeros(3), np.zeros(3))) is None
    assert interval_of_values(np.array([np.nan, np.inf, 1.0])) is None


def test_many_inputs_are_drawn_in_blocks() -> None:
    blocks = list(draws(100_000, resamples=100))
    assert [len(block) for block in blocks] == [41, 41, 18]
    assert len({tuple(row[:5]) for block in blocks for row in block}) == 100
    assert {int(block.min()) for block in blocks} == {0}
    assert {int(block.max()) for block in blocks} == {99_999}


def test_negated() -> None:
    assert Interval(-1, 2).negated() == Interval(-2, 1)

import sys

import jiwer
import numpy as np
import pytest

from hybrid_deploy.accuracy.bootstrap import Interval
from hybrid_deploy.accuracy.error_counts import character_errors, word_errors
from hybrid_deploy.accuracy.error_rates import (
    changes_of,
    compare_exactly,
    compare_texts,
    measure_accuracy,
)
from hybrid_deploy.accuracy.normalizers import load_normalizer
from hybrid_deploy.errors import InputError, MissingDependencyError


def test_character_error_rate_and_exact_match() -> None:
    accuracy = measure_accuracy(["123", "45678", "90"], ["123", "4567", "91"])
    assert accuracy.lines == 3
    assert accuracy.cer_percent == pytest.approx(20.0)  # two errors in ten characters
    assert accuracy.exact_percent == pytest.approx(100 / 3)


def test_spaces_at_the_ends_of_a_text_do_not_count() -> None:
    accuracy = measure_accuracy(["  6073262 "], ["6073262"])
    assert (accuracy.cer_percent, accuracy.exact_percent) == (0, 100)


def test_word_error_rate() -> None:
    accuracy = measure_accuracy(["to be or", "not"], ["to  be for ", "not"])
    assert accuracy.wer_percent == pytest.approx(25.0)  # one of four words, spaces do not count


def test_single_words_have_no_word_error_rate() -> None:
    assert measure_accuracy(["123", "4"], ["123", "5 6"]).wer_percent is None


def test_scripts_without_spaces_have_no_word_error_rate() -> None:
    assert measure_accuracy(["你好 世界"], ["你好 世"]).wer_percent is None


def test_any_whitespace_ends_a_word() -> None:
    counts = word_errors(["one\ntwo\tthree"], ["one two three"])
    assert (counts.parts.tolist(), counts.wholes.tolist()) == ([0], [3])


def test_text_where_none_is_expected_counts_as_insertions() -> None:
    assert character_errors(["abcd", ""], ["abcd", "xy"]).percent == pytest.approx(50.0)
    assert character_errors(["abcd", ""], ["abcd", ""]).percent == 0
    assert word_errors(["a b c d", ""], ["a b c d", "x y"]).percent == pytest.approx(50.0)


def test_errors_are_counted_for_each_text() -> None:
    counts = character_errors(["abcd", "efg", "h"], ["abd", "xefgy", ""])
    assert (counts.parts.tolist(), counts.wholes.tolist()) == ([1, 2, 1], [4, 3, 1])


def test_the_rates_are_those_of_the_library_over_all_texts() -> None:
    generator = np.random.default_rng(0)
    expected, decoded = (
        ["".join(generator.choice([*"abc "], generator.integers(3, 30))) + "z" for _ in range(50)]
        for _ in range(2)
    )
    accuracy = measure_accuracy(expected, decoded)
    assert accuracy.cer_percent == pytest.approx(100 * jiwer.cer(expected, decoded))
    assert accuracy.wer_percent == pytest.approx(100 * jiwer.wer(expected, decoded))


def test_normalised_texts_are_compared() -> None:
    expected, decoded = ["Hello, world."], [" hello world"]
    as_decoded = measure_accuracy(expected, decoded)
    assert (as_decoded.normalizer, as_decoded.exact_percent) == ("none", 0)
    basic = measure_accuracy(expected, decoded, load_normalizer("basic"))
    assert (basic.normalizer, basic.cer_percent, basic.wer_percent) == ("basic", 0, 0)
    assert basic.exact_percent == 100


def test_every_rate_has_an_interval() -> None:
    accuracy = measure_accuracy(["one two", "three", "four", "five"], ["one", "three", "four", "x"])
    assert accuracy.intervals.keys() == accuracy.percents.keys() == {"cer", "wer", "exact"}
    for rate, interval in accuracy.intervals.items():
        assert interval.low <= accuracy.percents[rate] <= interval.high, rate
    assert accuracy.intervals["exact"] == Interval(0, 100)


def test_a_single_text_has_no_intervals() -> None:
    assert measure_accuracy(["a b"], ["a c"]).intervals == {}


def test_changes_are_paired() -> None:
    expected = ["aaaa", "bbbb", "cccc", "dddd"]
    reference = compare_texts(expected, ["aaaa", "xxxx", "cccc", "dddd"])
    worse_everywhere = compare_texts(expected, ["aaax", "xxxxx", "cccx", "dddx"])
    changes = changes_of(worse_everywhere, reference)
    assert list(changes) == ["cer", "exact"]
    assert changes["cer"].points == pytest.approx(25)
    interval = changes["cer"].interval
    assert interval is not None  # one character more in each text, however they are drawn
    assert (interval.low, interval.high) == pytest.approx((25, 25))


def test_exact_matches_need_no_characters() -> None:
    compared = compare_exactly(["a", ""], ["a", "b"])
    assert compared.rates["exact"].percent == 50


def test_labels_that_the_normaliser_empties_have_no_error_rate() -> None:
    with pytest.raises(InputError) as caught:
        measure_accuracy(["...", "!"], ["a", ""], load_normalizer("basic"))
    assert str(caught.value) == (
        "every expected text is empty once basic has normalised it, so there is no error rate; "
        "check the labels, or give --normalize none"
    )


def test_a_text_that_the_normaliser_empties_counts_what_is_decoded() -> None:
    accuracy = measure_accuracy(["...", "four"], ["no", "four"], load_normalizer("basic"))
    assert (accuracy.cer_percent, accuracy.exact_percent) == (50, 50)
    silent = measure_accuracy(["...", "four"], ["?", "four"], load_normalizer("basic"))
    assert (silent.cer_percent, silent.exact_percent) == (0, 100)


def test_only_empty_expected_texts_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        measure_accuracy(["", " "], ["a", ""])
    assert str(caught.value) == (
        "every expected text is empty, so there is no error rate; check the labels"
    )


def test_missing_jiwer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(MissingDependencyError) as caught:
        measure_accuracy(["a"], ["a"])
    assert str(caught.value) == (
        "jiwer is not installed; install it with: pip install 'hybrid-deploy[report]'"
    )

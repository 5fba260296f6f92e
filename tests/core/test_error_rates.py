import sys

import pytest

from hybrid_deploy.error_rates import (
    character_error_percent,
    measure_accuracy,
    word_error_percent,
)
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


def test_text_where_none_is_expected_counts_as_insertions() -> None:
    assert character_error_percent(["abcd", ""], ["abcd", "xy"]) == pytest.approx(50.0)
    assert character_error_percent(["abcd", " "], ["abcd", ""]) == 0
    assert word_error_percent(["a b c d", ""], ["a b c d", "x y"]) == pytest.approx(50.0)


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

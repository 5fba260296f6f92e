import time

import pytest

from hybrid_deploy.accuracy.normalizers import AS_DECODED, load_normalizer
from hybrid_deploy.calibration.evaluation.metrics import Metric, load_metric
from hybrid_deploy.calibration.evaluation.score import Score, measure_score
from hybrid_deploy.errors import UsageError

EXPECTED = ["one two", "Three.", "four", "five six"]
FLOAT = ["one two", "three", "four", "five six"]
VARIANT = ["one too", "three", "for", "five six"]


def measured(metric: Metric, normalizer: str = "basic") -> Score:
    return measure_score(metric, EXPECTED, VARIANT, FLOAT, load_normalizer(normalizer))


@pytest.mark.parametrize(
    ("name", "value", "reference", "drop"),
    [("cer", 100 * 2 / 24, 0, 100 * 2 / 24), ("wer", 100 / 3, 0, 100 / 3), ("exact", 50, 100, 50)],
)
def test_a_built_in_metric_compares_normalised_texts(
    name: str, value: float, reference: float, drop: float
) -> None:
    score = measured(load_metric(name))
    assert (score.value, score.reference) == pytest.approx((value, reference))
    assert score.drop == pytest.approx(drop)
    assert score.interval is not None and score.drop_interval is not None
    assert score.interval.low <= value <= score.interval.high
    assert 0 <= score.drop_interval.low <= drop <= score.drop_interval.high


def test_as_decoded_a_capital_is_an_error() -> None:
    assert measured(load_metric("exact"), "none").reference == 75


def right(expected: list[str], decoded: list[str]) -> float:
    return 100 * sum(a == b for a, b in zip(expected, decoded, strict=True)) / len(expected)


def test_a_function_of_the_user_gets_the_texts_as_they_are() -> None:
    score = measured(Metric("right", right))
    assert (score.value, score.reference, score.drop) == (25, 75, 50)
    built_in = measured(load_metric("exact"), "none")
    assert (score.interval, score.drop_interval) == (built_in.interval, built_in.drop_interval)


def test_a_slow_function_has_no_interval() -> None:
    calls = []

    def slow(expected: list[str], decoded: list[str]) -> float:
        calls.append(len(expected))
        time.sleep(0.02)
        return 1.0

    score = measured(Metric("slow", slow))
    assert (score.interval, score.drop_interval) == (None, None)
    assert len(calls) == 3  # both values, and one to see how long it takes


def test_a_function_that_fails_on_some_draws_has_no_interval() -> None:
    def picky(expected: list[str], decoded: list[str]) -> float:
        return 1 / ("four" in expected)

    score = measured(Metric("picky", picky))
    assert (score.value, score.interval, score.drop_interval) == (1, None, None)


def test_a_single_input_has_no_interval() -> None:
    score = measure_score(Metric("right", right), ["a"], ["a"], ["b"], AS_DECODED)
    assert (score.drop, score.interval, score.drop_interval) == (-100, None, None)


def test_a_function_that_fails_on_all_inputs_is_an_error() -> None:
    with pytest.raises(UsageError, match="the metric broken failed: ZeroDivisionError"):
        measured(Metric("broken", lambda expected, decoded: 1 / 0))

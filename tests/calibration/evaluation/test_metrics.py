from pathlib import Path

import pytest

from hybrid_deploy.calibration.evaluation.metrics import Metric, load_metric
from hybrid_deploy.errors import UsageError

EXPECTED, DECODED = ["abcd", "ef"], ["abcx", "ef"]


@pytest.mark.parametrize(
    ("name", "value", "larger_is_better"),
    [("cer", 100 / 6, False), ("wer", 50, False), ("exact", 50, True)],
)
def test_built_in_metrics(name: str, value: float, larger_is_better: bool) -> None:
    metric = load_metric(name)
    assert metric.measure(EXPECTED, DECODED) == pytest.approx(value)
    assert metric.larger_is_better is larger_is_better


def test_drop_is_positive_if_the_value_is_worse() -> None:
    assert load_metric("cer").drop(1.0, 3.0) == 2.0
    assert load_metric("exact").drop(1.0, 3.0) == -2.0


def test_function_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("scoring_of_test.py").write_text(
        "def lengths(expected, given):\n    return sum(map(len, given)) / len(expected)\n"
        "largest = 3\n"
    )
    metric = load_metric("scoring_of_test:lengths")
    assert (metric.name, metric.measure(EXPECTED, DECODED)) == ("scoring_of_test:lengths", 3.0)
    with pytest.raises(UsageError) as caught:
        load_metric("scoring_of_test:largest")
    assert str(caught.value) == "scoring_of_test has no function 'largest'"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bleu", "unknown metric 'bleu'; choose cer, wer, exact or package.module:function"),
        ("math:", "unknown metric 'math:'; choose cer, wer, exact or package.module:function"),
        ("nowhere.at:all", "there is no module 'nowhere.at': No module named 'nowhere'"),
        ("math:nothing", "math has no function 'nothing'"),
        ("math:pi", "math has no function 'pi'"),
    ],
)
def test_unknown_metric(spec: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_metric(spec)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "shown"), [(float("nan"), "nan"), ("much", "'much'"), (None, "None")]
)
def test_metric_that_returns_no_finite_number(value: object, shown: str) -> None:
    metric = Metric("mine", lambda expected, given: value)  # type: ignore[arg-type,return-value]
    with pytest.raises(UsageError) as caught:
        metric.measure(EXPECTED, DECODED)
    assert str(caught.value) == (
        f"the metric mine returned {shown}; it must return a finite number, larger if better"
    )


def test_metric_that_fails() -> None:
    metric = Metric("mine", lambda expected, given: 1 / 0)
    with pytest.raises(UsageError) as caught:
        metric.measure(EXPECTED, DECODED)
    assert str(caught.value) == "the metric mine failed: ZeroDivisionError: division by zero"

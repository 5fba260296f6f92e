import numpy as np
import pytest

from hybrid_deploy.calibration.observers import (
    METHODS,
    MinMaxObserver,
    PercentileObserver,
    Range,
    make_observer,
)
from hybrid_deploy.errors import CalibrationError, UsageError


@pytest.fixture
def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(scale=s, size=(5, 40)).astype(np.float32) for s in (1, 3, 0.1)]


def test_minmax_keeps_the_extremes(arrays: list[np.ndarray]) -> None:
    observer = MinMaxObserver("x")
    for array in arrays:
        observer.observe(array)
    everything = np.stack(arrays)
    assert observer.range() == Range(float(everything.min()), float(everything.max()))


@pytest.mark.parametrize("kind", [MinMaxObserver, PercentileObserver])
def test_shards_equal_one_run(kind, arrays: list[np.ndarray]) -> None:  # type: ignore[no-untyped-def]
    whole, first, second = kind("x"), kind("x"), kind("x")
    for array in arrays:
        whole.observe(array)
    first.observe(arrays[0])
    for array in arrays[1:]:
        second.observe(array)
    second.merge(first)
    assert second.range() == whole.range()


def test_percentile_leaves_out_rare_magnitudes() -> None:
    observer = PercentileObserver("x", percentile=99.0)
    observer.observe(np.linspace(-1, 1, 100_000, dtype=np.float32))
    observer.observe(np.full(10, 1000, np.float32))
    found = observer.range()
    # the exact percentile is 0.99; a bin is at most 2 ** (1 / 64) wide
    assert 0.99 <= found.high <= 0.99 * 2 ** (1 / 64)
    assert found.low == -found.high


def test_percentile_never_exceeds_what_was_seen() -> None:
    observer = PercentileObserver("x")
    observer.observe(np.array([0.0, 0.5], np.float32))
    assert observer.range() == Range(0.0, 0.5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_by_name(method: str, bad: float) -> None:
    observer = make_observer(method, "step/linear_3")
    with pytest.raises(CalibrationError, match=r"^step/linear_3 holds NaN or infinity"):
        observer.observe(np.array([1, bad, 2], np.float32))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_observed_is_an_error(method: str) -> None:
    observer = make_observer(method, "linear_3")
    observer.observe(np.zeros((0, 4), np.float32))
    with pytest.raises(CalibrationError, match="linear_3 was never computed"):
        observer.range()


def test_unknown_method_lists_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        make_observer("entropy", "x")
    assert str(caught.value) == "unknown method 'entropy'; choose one of: minmax, percentile"


def test_scales_cover_the_range() -> None:
    assert Range(-2.54, 1).symmetric_scale == pytest.approx(0.02)
    assert Range(0, 0).symmetric_scale == 1.0


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [(0, 2.55, 0.01, 0), (-2.55, 0, 0.01, 255), (-1, 1.55, 0.01, 100), (1, 2.55, 0.01, 0)],
)
def test_unsigned_numbers_hold_zero(low: float, high: float, scale: float, zero_point: int) -> None:
    seen = Range(low, high)
    assert seen.unsigned_scale == pytest.approx(scale)
    assert seen.unsigned_zero_point == zero_point

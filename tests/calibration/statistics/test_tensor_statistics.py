import numpy as np
import pytest

from hybrid_deploy.calibration.statistics.tensor_statistics import UPPER_BOUNDS, TensorStatistics
from hybrid_deploy.errors import CalibrationError


def observed(arrays: list[np.ndarray], first: int = 0) -> TensorStatistics:
    statistics = TensorStatistics("step/linear")
    for index, array in enumerate(arrays, first):
        statistics.observe(array, index)
    return statistics


@pytest.fixture
def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(scale=s, size=(5, 40)).astype(np.float32) for s in (1, 3, 0.1)]


def same(a: TensorStatistics, b: TensorStatistics) -> bool:
    return np.array_equal(a.counts, b.counts) and a.extremes == b.extremes


def test_every_number_falls_into_its_bin(arrays: list[np.ndarray]) -> None:
    statistics = observed(arrays)
    magnitudes = np.sort(np.abs(np.concatenate([a.ravel() for a in arrays]).astype(np.float64)))
    below = np.searchsorted(magnitudes, UPPER_BOUNDS, side="right")
    # the logarithm that finds a bin may be rounded to the neighbour at the edge of a bin
    assert np.abs(np.cumsum(statistics.counts) - below).max() <= 1
    assert statistics.counts.sum() == magnitudes.size
    everything = np.stack(arrays)
    assert (statistics.low, statistics.high) == (everything.min(), everything.max())


def test_shards_in_any_order_equal_one_run(arrays: list[np.ndarray]) -> None:
    late, early = observed(arrays[1:], first=1), observed(arrays[:1])
    late.merge(early)
    assert same(late, observed(arrays))
    assert list(late.arrays()["samples"]) == [0, 1, 2]


def test_extremes_of_a_sample_cover_all_its_steps(arrays: list[np.ndarray]) -> None:
    statistics = TensorStatistics("x")
    for array in arrays:
        statistics.observe(array, sample=7)
    everything = np.stack(arrays)
    assert statistics.extremes == {7: (everything.min(), everything.max())}


def test_the_same_sample_in_both_statistics_is_refused(arrays: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="sample 1 was observed twice"):
        observed(arrays).merge(observed(arrays[1:], first=1))


def test_statistics_are_restored_from_their_arrays(arrays: list[np.ndarray]) -> None:
    statistics = observed(arrays)
    restored = TensorStatistics.from_arrays("step/linear", statistics.arrays())
    assert same(restored, statistics)
    empty = TensorStatistics.from_arrays("x", TensorStatistics("x").arrays())
    assert same(empty, TensorStatistics("x"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_the_tensor(bad: float) -> None:
    with pytest.raises(CalibrationError, match=r"^step/linear holds NaN or infinity"):
        observed([np.array([1, bad, 2], np.float32)])


def test_nothing_observed_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="step/linear was never computed"):
        _ = observed([np.zeros((0, 4), np.float32)]).low

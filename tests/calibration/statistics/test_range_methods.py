from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.calibration.statistics.range_methods import METHODS, range_method
from hybrid_deploy.calibration.statistics.ranges import Range
from hybrid_deploy.calibration.statistics.tensor_statistics import TensorStatistics
from hybrid_deploy.errors import CalibrationError, UsageError


def range_of(method: str, *samples: NDArray[Any]) -> Range:
    statistics = TensorStatistics("x")
    for index, array in enumerate(samples):
        statistics.observe(array.astype(np.float32), index)
    return range_method(method)(statistics)


def normal(size: int = 200_000) -> NDArray[np.float32]:
    return np.random.default_rng(3).standard_normal(size).astype(np.float32)


def squared_error(array: NDArray[np.float32], bound: float) -> float:
    scale = bound / 127
    return float(((array - np.clip(np.round(array / scale), -127, 127) * scale) ** 2).mean())


def test_minmax_covers_everything() -> None:
    assert range_of("minmax", np.array([-2.0, 1]), np.array([0.0, 7])) == Range(-2.0, 7.0)


def test_moving_average_follows_the_samples_slowly() -> None:
    range_ = range_of("moving-average", np.array([-1.0, 1]), np.array([-3.0, 2]))
    assert [range_.low, range_.high] == pytest.approx([-1.02, 1.01])


def test_percentile_leaves_out_rare_magnitudes() -> None:
    uniform = np.linspace(-1, 1, 1_000_000)
    range_ = range_of("percentile", uniform, np.full(50, 1000.0))
    assert 0.9999 <= range_.high <= 0.9999 * 2 ** (1 / 256) + 1e-4
    assert range_.low == -range_.high


def test_the_mse_bound_of_a_normal_distribution() -> None:
    """The best bound for 8 bits is 3.92 standard deviations (Banner et al., 2019)."""
    assert range_of("mse", normal()).high == pytest.approx(3.92, abs=0.25)


@pytest.mark.parametrize("outliers", [0, 20, 2000])
def test_no_other_bound_has_a_smaller_error(outliers: int) -> None:
    array = np.concatenate([normal(), 40 * normal(outliers)]) if outliers else normal()
    error = squared_error(array, range_of("mse", array).high)
    bounds = np.geomspace(np.abs(array).max() / 60, np.abs(array).max(), 100)
    assert error <= 1.02 * min(squared_error(array, float(bound)) for bound in bounds)


def test_entropy_clips_rare_outliers() -> None:
    array = np.concatenate([normal(), np.array([60.0], np.float32)])
    assert 3 < range_of("entropy", array).high < 12
    assert range_of("minmax", array).high == 60


def test_entropy_is_not_misled_by_zeros() -> None:
    """White paper and Relus make many zeros; the other values must decide the bound."""
    nonzero = np.abs(normal()) * 2
    with_zeros = np.concatenate([nonzero, np.zeros(1_000_000)])
    assert range_of("entropy", with_zeros).high == range_of("entropy", nonzero).high > 3


def test_entropy_covers_evenly_distributed_values() -> None:
    assert range_of("entropy", np.linspace(-1, 1, 100_000)).high > 0.95


@pytest.mark.parametrize("method", METHODS)
def test_no_range_exceeds_the_observed_values(method: str) -> None:
    range_ = range_of(method, np.array([0.0, 0.5]))
    assert range_.low == 0.0
    assert 0 < range_.high <= 0.5


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_an_empty_range(method: str) -> None:
    assert range_of(method, np.zeros(9)) == Range(0.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_observed_is_an_error(method: str) -> None:
    with pytest.raises(CalibrationError, match="x was never computed"):
        range_of(method)


def test_unknown_method_lists_all_methods() -> None:
    with pytest.raises(UsageError) as caught:
        range_method("magic")
    assert str(caught.value) == (
        "unknown method 'magic'; choose one of: minmax, moving-average, percentile, mse, entropy"
    )

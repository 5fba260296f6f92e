import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.calibration.statistics.channel_statistics import ChannelStatistics
from hybrid_deploy.calibration.statistics.tensor_statistics import TensorStatistics

Rows = NDArray[np.float32]


@pytest.fixture
def rows() -> Rows:
    rng = np.random.default_rng(2)
    return (rng.standard_normal((60, 7)) * np.exp(rng.uniform(-9, 9, 7))).astype(np.float32)


def observed(*arrays: Rows) -> ChannelStatistics:
    statistics = TensorStatistics("x", by_channel=True)
    for index, array in enumerate(arrays):
        statistics.observe(array, index)
    assert statistics.channels is not None
    return statistics.channels


def same(a: ChannelStatistics, b: ChannelStatistics) -> bool:
    return (
        a.rows == b.rows
        and np.array_equal(a.sums, b.sums)
        and a.largest.tobytes() == b.largest.tobytes()
    )


def test_largest_is_exact_and_mean_is_close(rows: Rows) -> None:
    channels = observed(rows).summary()
    np.testing.assert_array_equal(channels.largest, np.abs(rows).max(0))
    # each value is rounded to 2^-24, an error of at most 2^-25; then the mean to float32
    np.testing.assert_allclose(channels.mean, np.abs(rows).mean(0, dtype=float), 1e-7, 2**-25)
    assert channels.mean.dtype == np.float32


def test_any_split_merged_in_any_order_has_the_same_bits(rows: Rows) -> None:
    unsplit, rng = observed(rows), np.random.default_rng(0)
    for _ in range(10):
        cuts = np.sort(rng.choice(np.arange(1, 60), 3, replace=False))
        parts = [observed(part) for part in np.split(rows, cuts)]
        merged = ChannelStatistics()
        for index in rng.permutation(4):
            merged.merge(parts[index])
        merged.merge(ChannelStatistics())
        assert same(merged, unsplit)


def test_channels_are_those_of_the_last_axis(rows: Rows) -> None:
    assert same(observed(rows.reshape(3, 5, 4, 7)), observed(rows))
    assert same(observed(rows[0], rows[1]), observed(rows[:2]))


def test_a_sum_is_limited() -> None:
    statistics = observed(*[np.full((1, 2), 3e38, np.float32)] * 3)
    assert (statistics.sums == 2**61).all()
    assert statistics.summary().largest.tolist() == [np.float32(3e38)] * 2


def test_statistics_are_restored_from_their_arrays(rows: Rows) -> None:
    statistics = TensorStatistics("x", by_channel=True)
    statistics.observe(rows, 0)
    restored = TensorStatistics.from_arrays("x", statistics.arrays())
    assert restored.channels is not None
    assert statistics.channels is not None
    assert same(restored.channels, statistics.channels)
    without_channels = TensorStatistics.from_arrays("x", TensorStatistics("x").arrays())
    assert without_channels.channels is None

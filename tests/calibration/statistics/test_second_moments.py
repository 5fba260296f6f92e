import numpy as np

from hybrid_deploy.calibration.statistics.second_moments import SecondMoments


def test_the_mean_is_over_the_rows_of_all_arrays() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((2, 3, 5), (7, 5), (1, 5))]
    first, second = SecondMoments(), SecondMoments()
    for moments, part in ((first, arrays[:2]), (second, arrays[2:])):
        for array in part:
            moments.observe(array, 0)
    first.merge(second)
    first.merge(SecondMoments())
    rows = np.concatenate([array.reshape(-1, 5) for array in arrays]).astype(np.float64)
    assert first.rows == len(rows) == 14
    np.testing.assert_allclose(first.mean, rows.T @ rows / 14)


def test_merging_leaves_the_other_as_it_was() -> None:
    one, other = SecondMoments(), SecondMoments()
    other.observe(np.ones((2, 3), np.float32), 0)
    one.merge(other)
    one.observe(np.ones((4, 3), np.float32), 1)
    assert other.rows == 2
    np.testing.assert_array_equal(other.sums, np.full((3, 3), 2))

import pytest

from hybrid_deploy.calibration.statistics.ranges import Range


def test_scales_cover_the_range() -> None:
    assert Range(-2.54, 1).symmetric_scale == pytest.approx(0.02)
    assert Range(0, 0).symmetric_scale == 1.0


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [(0, 2.55, 0.01, 0), (-2.55, 0, 0.01, 255), (-1, 1.55, 0.01, 100), (1, 2.55, 0.01, 0)],
)
def test_unsigned_numbers_represent_zero_exactly(
    low: float, high: float, scale: float, zero_point: int
) -> None:
    range_ = Range(low, high)
    assert range_.unsigned_scale == pytest.approx(scale)
    assert range_.unsigned_zero_point == zero_point

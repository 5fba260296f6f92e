from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from hybrid_deploy.calibration.half_precision.float16_range import (
    FLOAT16,
    Consumer,
    consumers_of,
    round_to_half,
)
from hybrid_deploy.errors import CalibrationError

Build = Callable[..., ir.Model]

ADDED, SUBTRACTED = Consumer("Add", 1), Consumer("Sub", 1)
WEIGHT = [Consumer("MatMul", 1)]


def test_masks_are_clamped_so_that_sums_stay_finite() -> None:
    half = round_to_half(
        "mask", np.array([0, -1e9, -np.inf], np.float32), [ADDED, Consumer("Where", 2)], FLOAT16
    )
    assert half.tolist() == [0, -FLOAT16.largest / 2, -np.inf]
    assert np.isfinite(half[1] + half[1])


def test_bounds_are_clamped() -> None:
    assert (
        round_to_half("bound", np.array([3.4e38], np.float32), [Consumer("Clip", 1)], FLOAT16)
        == FLOAT16.largest
    )


def test_epsilon_does_not_vanish() -> None:
    assert round_to_half("eps", np.array(1e-12, np.float32), [ADDED], FLOAT16) > 0


@pytest.mark.parametrize(
    ("large", "consumer"),
    [
        (-1e9, ADDED),
        (1e9, SUBTRACTED),
        (1e9, Consumer("Add", 0, True)),
        (-1e9, Consumer("output", 0, True)),
    ],
)
def test_masks_are_clamped_by_their_consumer(large: float, consumer: Consumer) -> None:
    half = round_to_half("mask", np.array([0, large], np.float32), [consumer], FLOAT16)
    assert half.tolist() == [0, np.copysign(FLOAT16.largest / 2, large)]


@pytest.mark.parametrize(
    ("large", "consumer"),
    [
        (1e9, ADDED),
        (-1e9, SUBTRACTED),
        (-1e9, Consumer("output", 0)),
        (-1e9, Consumer("MatMul", 0, True)),
    ],
)
def test_large_numbers_that_are_no_mask_are_refused(large: float, consumer: Consumer) -> None:
    with pytest.raises(CalibrationError, match="float16 ends at 65504"):
        round_to_half("table", np.array([0, large], np.float32), [consumer], FLOAT16)


def test_weight_out_of_range_is_named() -> None:
    with pytest.raises(CalibrationError) as caught:
        round_to_half("head.weight", np.array([[1, 7e4]], np.float32), WEIGHT, FLOAT16)
    assert str(caught.value) == (
        "head.weight holds 7e+04, float16 ends at 65504; quantize to int8 or keep fp32"
    )


def test_nan_weight_is_named() -> None:
    with pytest.raises(CalibrationError, match=r"^head.weight holds NaN"):
        round_to_half("head.weight", np.array([np.nan], np.float32), WEIGHT, FLOAT16)


def test_consumers_lie_behind_moving_operators(build: Build) -> None:
    text = """g (int64[b] position, float[b,4] scores) => (float[b,4] logits) {
        row = Gather (table, position)
        size = Shape (row)
        flat = Reshape (row, size)
        logits = Sub (scores, flat)
    }"""
    model = build(text, {"table": np.zeros((9, 4), np.float32)})
    assert consumers_of(model.graph.initializers["table"]) == {SUBTRACTED}


def test_a_selected_mask_has_the_subtraction_as_consumer(build: Build) -> None:
    text = """g (bool[b,4] future, float[b,2,4] scores) => (float[b,2,4] logits) {
        row = Where (future, large, zero)
        mask = Unsqueeze (row, axes)
        logits = Sub (scores, mask)
    }"""
    constants = {
        "large": np.array(1e9, np.float32),
        "zero": np.array(0, np.float32),
        "axes": np.array([1], np.int64),
    }
    model = build(text, constants)
    assert consumers_of(model.graph.initializers["large"]) == {SUBTRACTED}


def test_a_factor_of_a_mask_has_scaled_consumers(build: Build) -> None:
    text = """g (float[b,4] hidden, float[b,4] scores) => (float[b,4] logits, float[b,4] mask) {
        product = Mul (hidden, large)
        mask = Identity (product)
        logits = Add (scores, product)
    }"""
    model = build(text, {"large": np.array(-1e9, np.float32)})
    consumers = consumers_of(model.graph.initializers["large"])
    assert consumers == {Consumer("Add", 1, True), Consumer("output", 0, True)}


def test_a_weight_has_the_product_as_consumer(build: Build) -> None:
    text = """g (float[b,4] x) => (float[b,4] logits) {
        y = Mul (x, scale)
        logits = Add (x, y)
    }"""
    model = build(text, {"scale": np.full(4, 1e9, np.float32)})
    assert consumers_of(model.graph.initializers["scale"]) == {Consumer("Mul", 1)}

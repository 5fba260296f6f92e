"""Tests of the floor, the Python overhead and the goals, with results computed by hand."""

from __future__ import annotations

import pytest

from hybrid_deploy.bundle.manifest import GraphCost
from hybrid_deploy.contract import GraphRole
from tests.benchmarks.cpu.floor import Rates, floor_of, step_bytes
from tests.benchmarks.cpu.goals import Measured, goals_of
from tests.benchmarks.cpu.overhead import Call, Overhead, overhead_of
from tests.benchmarks.cpu.workloads import EIGHT_BIT, FLOAT, Workload

TASK = Workload("whisper", "", (1, 2), 8)
STEP, REFINE = GraphRole.STEP, GraphRole.REFINE


def test_step_bytes_count_the_part_of_caches_that_is_filled_on_average() -> None:
    cost = GraphCost(flops=0, weight_bytes=1000, cache_bytes=200, input_bytes=30)
    assert step_bytes(cost, TASK) == 1000 + 30 + 200 * 6 / 10


def test_read_time_uses_the_best_rate_of_buffers_as_large() -> None:
    rates = Rates({10: 1000.0, 100: 200.0, 1000: 250.0})
    assert rates.read_ms(10) == pytest.approx(10.0)
    # for 11 bytes the rate of 1000 bytes, which is better than that of 100
    assert rates.read_ms(11) == pytest.approx(44.0)
    # larger than every measured buffer: the rate of the largest one
    assert rates.read_ms(5000) == pytest.approx(20_000.0)


def test_the_best_of_several_measurements_is_kept() -> None:
    rates = Rates()
    rates.keep_best(Rates({10: 5.0}, multiply=3.0, multiply_8_bits=9.0))
    rates.keep_best(Rates({10: 4.0, 20: 7.0}, multiply=6.0, multiply_8_bits=8.0))
    assert rates == Rates({10: 5.0, 20: 7.0}, 6.0, 9.0)
    assert Rates.from_json(rates.to_json()) == rates


def test_an_encoders_floor_uses_the_precision_of_its_class() -> None:
    rates = Rates({10_000: 1e6}, multiply=1e9, multiply_8_bits=4e9)
    costs = {"encoder": GraphCost(8_000_000, 0, 0, 0), "step": GraphCost(0, 2000, 0, 0)}
    in_float, in_8_bits = (floor_of(costs, TASK, kind, rates) for kind in (FLOAT, EIGHT_BIT))
    assert in_float is not None and in_8_bits is not None
    assert (in_float.encoder_ms, in_8_bits.encoder_ms) == pytest.approx((8.0, 2.0))
    assert (in_float.next_ms, in_float.step_mb) == pytest.approx((2.0, 0.002))
    assert floor_of({"encoder": None}, TASK, FLOAT, rates) is None


def test_overhead_is_the_time_between_two_steps() -> None:
    calls = [
        Call(STEP, 0.0, 3e-6),
        Call(REFINE, 4e-6, 6e-6),
        Call(STEP, 10e-6, 14e-6),
        Call(REFINE, 15e-6, 17e-6),
        Call(STEP, 20e-6, 24e-6),
    ]
    warm = [Call(STEP, 0.0, 1e-6), Call(STEP, 3e-6, 4e-6)]
    overhead = overhead_of(calls, warm)
    assert (overhead.step_us, overhead.loop_us, overhead.refine_us) == pytest.approx(
        (3.5, 4.5, 2.0)
    )
    assert overhead.warm_us == pytest.approx(2.0)
    assert Overhead.from_json(overhead.to_json()) == overhead


def test_goals_are_met_or_not() -> None:
    measured = Measured(
        speed=1.31, floor_ratio=1.6, load_ms=300.0, peak_mb=150.0, least_rival_mb=149.0,
        loop_us=None, same_tokens=(8, 8),
    )  # fmt: skip
    goals = goals_of("whisper", "int8-cpu", FLOAT, measured)
    assert [(goal.target, goal.measured, goal.met) for goal in goals] == [
        (">= 1.3", "1.31", True),
        ("8/8", "8/8", True),
        ("<= 1.50", "1.60", False),
        ("<= 300", "300", True),
        ("<= 149", "150", False),
    ]


def test_token_and_load_goals_do_not_apply_to_every_variant() -> None:
    measured = Measured(
        speed=None, floor_ratio=None, load_ms=900.0, peak_mb=9.0, least_rival_mb=1.0, loop_us=15.4,
        same_tokens=(2, 8),
    )  # fmt: skip
    (goal,) = goals_of("resnet", "int8-cpu", EIGHT_BIT, measured)
    assert (goal.measured, goal.met) == ("15.4", False)

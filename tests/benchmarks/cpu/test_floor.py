"""The floor against numbers worked out by hand, and what Python adds to a step."""

from __future__ import annotations

import pytest

from hybrid_deploy.bundle.manifest import GraphCost
from hybrid_deploy.contract import GraphRole
from tests.benchmarks.cpu.floor import Rates, floor_of, step_bytes
from tests.benchmarks.cpu.goals import Reached, goals_of
from tests.benchmarks.cpu.overhead import Call, Overhead, overhead_of
from tests.benchmarks.cpu.workloads import EIGHT_BIT, FLOAT, Workload

TASK = Workload("whisper", "", (1, 2), 8)
STEP, REFINE = GraphRole.STEP, GraphRole.REFINE


def test_the_caches_count_as_filled_on_average() -> None:
    cost = GraphCost(flops=0, weight_bytes=1000, cache_bytes=200, input_bytes=30)
    assert step_bytes(cost, TASK) == 1000 + 30 + 200 * 6 / 10


def test_reading_takes_the_best_rate_of_buffers_that_hold_it() -> None:
    rates = Rates({10: 1000.0, 100: 200.0, 1000: 250.0})
    assert rates.read_ms(10) == pytest.approx(10.0)
    assert rates.read_ms(11) == pytest.approx(44.0)  # 1000 bytes come faster than 100
    assert rates.read_ms(5000) == pytest.approx(20_000.0)  # nothing as large was measured


def test_the_best_of_several_measurements_is_kept() -> None:
    rates = Rates()
    rates.take(Rates({10: 5.0}, multiply=3.0, multiply_8_bits=9.0))
    rates.take(Rates({10: 4.0, 20: 7.0}, multiply=6.0, multiply_8_bits=8.0))
    assert rates == Rates({10: 5.0, 20: 7.0}, 6.0, 9.0)
    assert Rates.from_json(rates.to_json()) == rates


def test_an_encoder_is_multiplied_in_the_numbers_of_its_class() -> None:
    rates = Rates({10_000: 1e6}, multiply=1e9, multiply_8_bits=4e9)
    costs = {"encoder": GraphCost(8_000_000, 0, 0, 0), "step": GraphCost(0, 2000, 0, 0)}
    exact, rough = (floor_of(costs, TASK, kind, rates) for kind in (FLOAT, EIGHT_BIT))
    assert exact is not None and rough is not None
    assert (exact.encoder_ms, rough.encoder_ms) == pytest.approx((8.0, 2.0))
    assert (exact.next_ms, exact.step_mb) == pytest.approx((2.0, 0.002))
    assert floor_of({"encoder": None}, TASK, FLOAT, rates) is None


def test_python_is_what_lies_between_two_steps() -> None:
    calls = [
        Call(STEP, 0.0, 3e-6),
        Call(REFINE, 4e-6, 6e-6),
        Call(STEP, 10e-6, 14e-6),
        Call(REFINE, 15e-6, 17e-6),
        Call(STEP, 20e-6, 24e-6),
    ]
    warm = [Call(STEP, 0.0, 1e-6), Call(STEP, 3e-6, 4e-6)]
    found = overhead_of(calls, warm)
    assert (found.step_us, found.loop_us, found.refine_us) == pytest.approx((3.5, 4.5, 2.0))
    assert found.warm_us == pytest.approx(2.0)
    assert Overhead.from_json(found.to_json()) == found


def test_goals_are_met_or_not() -> None:
    reached = Reached(
        speed=1.31, floors=1.6, load_ms=300.0, peak_mb=150.0, least_rival_mb=149.0, loop_us=None,
        same_tokens=(8, 8),
    )  # fmt: skip
    goals = goals_of("whisper", "int8-cpu", FLOAT, reached)
    assert [(goal.wanted, goal.measured, goal.met) for goal in goals] == [
        (">= 1.3", "1.31", True),
        ("8/8", "8/8", True),
        ("<= 1.50", "1.60", False),
        ("<= 300", "300", True),
        ("<= 149", "150", False),
    ]


def test_fewer_bits_may_change_tokens_and_other_workloads_may_load_longer() -> None:
    reached = Reached(
        speed=None, floors=None, load_ms=900.0, peak_mb=9.0, least_rival_mb=1.0, loop_us=15.4,
        same_tokens=(2, 8),
    )  # fmt: skip
    (goal,) = goals_of("resnet", "int8-cpu", EIGHT_BIT, reached)
    assert (goal.measured, goal.met) == ("15.4", False)

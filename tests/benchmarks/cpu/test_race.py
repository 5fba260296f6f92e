"""Tests of rounds and ratios, with given times."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.benchmarks.cpu.race import Race, Ratio, Turn, fastest, ratio, run_rounds, same_tokens


class OutError(Exception):
    """A contender failed."""


def never() -> float:
    return 0.0


def race_of(**times: list[float]) -> Race:
    return Race(
        {name: [Turn(ms, 1.0) for ms in milliseconds] for name, milliseconds in times.items()}
    )


def test_the_order_is_reversed_in_every_second_round() -> None:
    order: list[str] = []

    def turn(name: str) -> Turn:
        order.append(name)
        return Turn(1.0, 1.0)

    race = run_rounds("abc", turn, seconds=0, min_rounds=3, failure=OutError, clock=never)
    assert "".join(order) == "abccbaabc"
    assert {name: len(turns) for name, turns in race.turns.items()} == {"a": 3, "b": 3, "c": 3}


def test_rounds_start_until_the_time_has_passed() -> None:
    ticks: Iterator[float] = iter([0.0, 4.0, 8.0, 12.0])
    race = run_rounds(
        ["a"], lambda name: Turn(1.0, 1.0), seconds=10, min_rounds=1, failure=OutError,
        clock=lambda: next(ticks),
    )  # fmt: skip
    assert len(race.turns["a"]) == 3  # min_rounds starts the first one without the clock


def test_a_failed_contender_leaves_and_the_others_go_on() -> None:
    turns = {"a": 0, "b": 0}

    def turn(name: str) -> Turn:
        turns[name] += 1
        if name == "b" and turns[name] == 2:
            raise OutError("no memory")
        return Turn(1.0, 1.0)

    race = run_rounds(["a", "b"], turn, seconds=0, min_rounds=4, failure=OutError, clock=never)
    assert (race.failures, race.finished) == ({"b": "no memory"}, ["a"])
    assert (len(race.turns["a"]), len(race.turns["b"])) == (4, 1)


def test_rounds_end_when_no_contender_is_left() -> None:
    def turn(name: str) -> Turn:
        raise OutError("gone")

    race = run_rounds(["a"], turn, seconds=60, min_rounds=5, failure=OutError, clock=never)
    assert (race.finished, race.turns) == ([], {"a": []})


def test_a_ratio_is_computed_within_each_round() -> None:
    """A slow second round and one stalled turn do not change the median and the quartiles."""
    race = race_of(ours=[10, 20, 10, 10, 40], theirs=[15, 30, 15, 15, 15])
    steady = ratio(race, "ours", "theirs")
    assert (steady.median, steady.low, steady.high) == pytest.approx((1.5, 1.5, 1.5))
    spread = ratio(race_of(ours=[10, 10, 10], theirs=[10, 20, 40]), "ours", "theirs")
    assert (spread.low, spread.median, spread.high) == pytest.approx((1.5, 2.0, 3.0))
    assert ratio(race_of(ours=[10], theirs=[25]), "ours", "theirs") == Ratio(2.5, 2.5, 2.5)


def test_the_fastest_rival_has_the_smallest_ratio() -> None:
    ratios = {"a": Ratio(1.4, 1.0, 2.0), "b": Ratio(1.2, 1.1, 9.0)}
    assert (fastest(ratios), fastest({})) == ("b", None)


def test_the_time_of_a_further_token_leaves_out_the_first() -> None:
    assert Turn(100.0, 40.0, tokens=(1, 2, 3, 4)).next_ms == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("tokens", "count"), [((1, 2, 3), 3), ((1, 5, 3), 1), ((1, 2), 2), ((), 0)]
)
def test_tokens_are_the_same_up_to_the_first_that_differs(
    tokens: tuple[int, ...], count: int
) -> None:
    assert same_tokens(tokens, (1, 2, 3)) == count

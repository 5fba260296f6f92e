"""The goals of our variants, and whether a measurement meets them."""

from __future__ import annotations

from dataclasses import dataclass

from tests.benchmarks.cpu.workloads import FLOAT, RESNET, TROCR, WHISPER

_TIMES_AS_FAST = {
    (WHISPER.name, "fp32"): 1.1,
    (WHISPER.name, "fp32-cpu"): 1.3,
    (WHISPER.name, "int8-cpu"): 1.3,
    (WHISPER.name, "int4-cpu"): 1.5,
    (TROCR.name, "fp32"): 1.25,
    (TROCR.name, "fp32-cpu"): 1.25,
    (TROCR.name, "int8-cpu"): 2.0,
    (RESNET.name, "fp32"): 4.0,
    (RESNET.name, "fp32-cpu"): 4.0,
    (RESNET.name, "int8-cpu"): 5.0,
}
_TIMES_THE_FLOOR = 1.5
_LOAD_MS = 300.0
_LOOP_US = 15.0


@dataclass(frozen=True)
class Goal:
    """One goal and its measurement.

    Attributes:
        label: name of the number, with its unit.
        target: required value, as text such as `>= 1.3`.
        measured: measured value, as text.
        met: whether the measured value meets the target.
    """

    label: str
    target: str
    measured: str
    met: bool


@dataclass(frozen=True)
class Measured:
    """Measurements of one of our variants; None where there is no measurement.

    Attributes:
        speed: time of the fastest rival divided by ours, the median over all rounds.
        floor_ratio: time of a token after the first divided by its floor, both at their best.
        load_ms: milliseconds to load the session.
        peak_mb: peak RAM in MB.
        least_rival_mb: smallest peak RAM among the rivals, in MB.
        loop_us: microseconds that the Python loop adds to a step.
        same_tokens: number of leading tokens equal to eager PyTorch's, and number of all tokens.
    """

    speed: float | None
    floor_ratio: float | None
    load_ms: float
    peak_mb: float | None
    least_rival_mb: float | None
    loop_us: float | None
    same_tokens: tuple[int, int]


def goals_of(workload: str, form: str, kind: str, measured: Measured) -> list[Goal]:
    """Returns the goals of a variant, compared with its measurements."""
    goals = []
    speed_goal = _TIMES_AS_FAST.get((workload, form))
    if speed_goal is not None and measured.speed is not None:
        goals.append(_at_least("times as fast as the fastest rival", speed_goal, measured.speed))
    if kind == FLOAT:
        goals.append(_all_the_same(*measured.same_tokens))
    if measured.floor_ratio is not None:
        goals.append(
            _at_most("ms/next token, times the floor", _TIMES_THE_FLOOR, measured.floor_ratio)
        )
    if workload == WHISPER.name:
        goals.append(_at_most("load ms", _LOAD_MS, measured.load_ms, digits=0))
        if measured.peak_mb is not None and measured.least_rival_mb is not None:
            goals.append(
                _at_most("peak MB, every rival's", measured.least_rival_mb, measured.peak_mb, 0)
            )
    if measured.loop_us is not None:
        goals.append(_at_most("us of Python per step", _LOOP_US, measured.loop_us, digits=1))
    return goals


def _all_the_same(same: int, count: int) -> Goal:
    label = "tokens that are those of eager PyTorch"
    return Goal(label, f"{count}/{count}", f"{same}/{count}", same == count)


def _at_least(label: str, target: float, measured: float) -> Goal:
    return Goal(label, f">= {target:g}", f"{measured:.2f}", measured >= target)


def _at_most(label: str, target: float, measured: float, digits: int = 2) -> Goal:
    return Goal(label, f"<= {target:.{digits}f}", f"{measured:.{digits}f}", measured <= target)

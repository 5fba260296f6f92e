"""What ours is to reach, and what of that was met."""

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
    """One number that is wanted.

    Attributes:
        what: the number, with its unit.
        wanted: as text.
        measured: as text.
        met: whether it was reached.
    """

    what: str
    wanted: str
    measured: str
    met: bool


@dataclass(frozen=True)
class Reached:
    """What one variant of ours reached; None where it is not known.

    Attributes:
        speed: how many times as long the fastest rival takes, the median of all rounds.
        floors: how many times the floor a token after the first takes, both at their best.
        load_ms: time to load the session.
        peak_mb: most memory held.
        least_rival_mb: the smallest peak among the rivals.
        loop_us: what the Python loop adds to a step.
        same_tokens: how many leading tokens are those of eager PyTorch, and of how many.
    """

    speed: float | None
    floors: float | None
    load_ms: float
    peak_mb: float | None
    least_rival_mb: float | None
    loop_us: float | None
    same_tokens: tuple[int, int]


def goals_of(workload: str, form: str, kind: str, reached: Reached) -> list[Goal]:
    """Holds what a variant reached against what is wanted of it."""
    found = []
    wanted = _TIMES_AS_FAST.get((workload, form))
    if wanted is not None and reached.speed is not None:
        found.append(_at_least("times as fast as the fastest rival", wanted, reached.speed))
    if kind == FLOAT:
        found.append(_all_the_same(*reached.same_tokens))
    if reached.floors is not None:
        found.append(_at_most("ms/next token, times the floor", _TIMES_THE_FLOOR, reached.floors))
    if workload == WHISPER.name:
        found.append(_at_most("load ms", _LOAD_MS, reached.load_ms, digits=0))
        if reached.peak_mb is not None and reached.least_rival_mb is not None:
            found.append(
                _at_most("peak MB, every rival's", reached.least_rival_mb, reached.peak_mb, 0)
            )
    if reached.loop_us is not None:
        found.append(_at_most("us of Python per step", _LOOP_US, reached.loop_us, digits=1))
    return found


def _all_the_same(same: int, count: int) -> Goal:
    what = "tokens that are those of eager PyTorch"
    return Goal(what, f"{count}/{count}", f"{same}/{count}", same == count)


def _at_least(what: str, wanted: float, measured: float) -> Goal:
    return Goal(what, f">= {wanted:g}", f"{measured:.2f}", measured >= wanted)


def _at_most(what: str, wanted: float, measured: float, digits: int = 2) -> Goal:
    return Goal(what, f"<= {wanted:.{digits}f}", f"{measured:.{digits}f}", measured <= wanted)

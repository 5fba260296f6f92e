"""Trials in a child process, which is started again after one that ended it.

A trial is a function from a seed to a word such as `same` that says what came of it. It may raise
an error of the toolkit; every other exception, a signal, a timeout and too much RAM are faults.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from hybrid_deploy.errors import HybridDeployError
from tests.benchmarks.reliability.row import Row
from tests.benchmarks.reliability.tiny_bundle import workshop
from tests.worker_process import NoAnswerError, WorkerProcess

Trial: TypeAlias = Callable[[int], str]

REFUSED = "refused"
"""Word of a trial that ended with an error of the toolkit."""

LIMIT_S = 10.0
"""Longest time of a trial in seconds."""

LIMIT_BYTES = 1 << 30
"""Largest growth of the process's RAM in a trial."""

_SHOWN_FAULTS = 20
_LONGEST_FAULT = 300


class FaultError(Exception):
    """What a trial raises when the toolkit did what it must not do."""


@dataclass
class Tally:
    """What came of many trials.

    Attributes:
        words: number of trials by their word.
        faults: a line with the seed of each fault.
    """

    words: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def shown_faults(self) -> tuple[str, ...]:
        """The first faults, and the number of the others."""
        more = len(self.faults) - _SHOWN_FAULTS
        return (*self.faults[:_SHOWN_FAULTS], *([f"and {more} more"] if more > 0 else []))

    def result(self) -> str:
        """Returns the counts in one line."""
        parts = [f"{count:,} {word}" for word, count in sorted(self.words.items())]
        return ", ".join([*parts, f"{len(self.faults):,} faults"])


def run_trials(
    trial: Trial, seeds: Iterable[int], planted: Sequence[int], limit_s: float = LIMIT_S
) -> tuple[Tally, bool]:
    """Runs the trial of every seed in a child process, and then those with a planted fault.

    Args:
        trial: the trial, which can be pickled.
        seeds: the seeds.
        planted: seeds for which the trial plants a fault.
        limit_s: time in seconds after which the child is killed.

    Returns:
        What came of the seeds, and whether every planted fault was noticed.
    """
    tally, child = Tally(), WorkerProcess(_Measured(trial), limit_s)
    try:
        for seed in seeds:
            is_fault, text = _asked(child, seed)
            if is_fault:
                tally.faults.append(f"seed {seed}: {text[:_LONGEST_FAULT]}")
            else:
                tally.words[text] += 1
        return tally, all([_asked(child, seed)[0] for seed in planted])
    finally:
        child.stop()


def row_of_trials(
    name: str,
    control: str,
    trial_in: Callable[[Path, Path], Trial],
    seeds: Sequence[int],
    planted: Sequence[int],
    *,
    bundle: Path | None = None,
    limit_s: float = LIMIT_S,
) -> Row:
    """Returns the row of a check that runs one trial for every seed.

    Args:
        name: what is done, for the row.
        control: the planted fault, for the row.
        trial_in: makes the trial from a bundle and an empty folder, which is deleted at the end.
        seeds: the seeds.
        planted: seeds for which the trial plants a fault.
        bundle: the bundle; None exports a tiny one.
        limit_s: time in seconds after which a trial is given up.
    """
    started_at = time.monotonic()
    with workshop(bundle) as (original, scratch):
        tally, caught = run_trials(trial_in(original, scratch), seeds, planted, limit_s)
    seconds = time.monotonic() - started_at
    return Row(name, len(seeds), tally.result(), tally.shown_faults, control, caught, seconds)


def _asked(child: WorkerProcess[tuple[bool, str]], seed: int) -> tuple[bool, str]:
    """Returns whether the trial of a seed is a fault, and its word or the reason."""
    try:
        return child.ask(seed)
    except NoAnswerError as error:
        return True, str(error)


def crash() -> str:
    """Ends this process as a segmentation fault does: the fault that controls plant."""
    os.kill(os.getpid(), signal.SIGSEGV)
    return "alive"


def outcome_of(trial: Trial, seed: int) -> tuple[bool, str]:
    """Returns whether a trial in this process is a fault, and its word or the reason."""
    try:
        return False, trial(seed)
    except HybridDeployError as error:
        line = str(error)
        return (True, f"an empty {type(error).__name__}") if not line.strip() else (False, REFUSED)
    except FaultError as fault:
        return True, str(fault)
    except BaseException as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else ""
        return True, f"{type(error).__name__}: {str(error)[:150]!r}{where}"


class PeakRam:
    """Measures how far the RAM of this process grows above its size at the start, in bytes."""

    def __init__(self) -> None:
        with suppress(OSError):  # a container may forbid it; the peak then never sinks
            Path("/proc/self/clear_refs").write_text("5")
        self._start = _status_bytes("VmRSS")

    def growth_bytes(self) -> int:
        """Returns the growth so far."""
        return _status_bytes("VmHWM") - self._start


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@dataclass(frozen=True)
class _Measured:
    """A trial in silence that returns whether it is a fault, and its word or the reason."""

    trial: Trial

    def __call__(self, seed: int) -> tuple[bool, str]:
        with Path(os.devnull).open("w") as nowhere:
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                ram = PeakRam()
                is_fault, text = outcome_of(self.trial, seed)
                grown = ram.growth_bytes()
        if not is_fault and grown > LIMIT_BYTES:
            return True, f"{grown / 1e6:.0f} MB more RAM ({text})"
        return is_fault, text

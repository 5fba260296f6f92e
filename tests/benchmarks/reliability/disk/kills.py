"""Kills commands while they write: a reader finds the old or the new, and nothing is left."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.benchmarks.reliability.disk.faults import Ended
from tests.benchmarks.reliability.disk.writers import ROOT, WorkFolder, Writer, shares, writers
from tests.benchmarks.reliability.row import Row
from tests.benchmarks.reliability.tiny_bundle import workshop

_ATTEMPTS = 3
"""How often a kill is tried that comes too late, because the command had less to do."""
_IN_PLACE = (sys.executable, str(ROOT / "tests/benchmarks/reliability/disk/in_place.py"))
_LEFT = "left behind"


@dataclass(frozen=True)
class _Undisturbed:
    """A command that is not killed: `found` is what a reader finds, before and after it."""

    found: frozenset[str]
    names: list[str]
    calls: int
    seconds: float


def check(count: int, seed: int, *, bundle: Path | None = None, only: Collection[str] = ()) -> Row:
    """Kills every command that writes, at its calls to the file system and at random times.

    Args:
        count: number of kills, over all commands.
        seed: seed of the times.
        bundle: a small bundle to start with; None exports one.
        only: names of the commands; empty for all.
    """
    began, rng = time.perf_counter(), random.Random(seed)
    chosen = [writer for writer in writers() if not only or writer.name in only]
    with workshop(bundle) as (original, scratch):
        place = WorkFolder(scratch, original)
        faults, killed = [], 0
        for writer, kills in zip(chosen, shares([w.share for w in chosen], count), strict=True):
            trials = _Trials(place, writer, rng)
            faults += [f"{writer.name}, seed {seed}: {fault}" for fault in trials.run(kills)]
            killed += trials.killed
        caught = _notices_in_place_writer(place, rng)
    return Row(
        name=f"kills of {', '.join(writer.name for writer in chosen)}",
        count=killed,
        result=f"{killed} killed, {len(faults)} lost or left something",
        faults=tuple(faults),
        control="a command that rewrites a manifest in place and leaves a copy",
        caught=caught,
        seconds=time.perf_counter() - began,
    )


class _Trials:
    """Kills one command again and again.

    Args:
        place: folder of the command.
        writer: the command.
        rng: draws the times.
    """

    def __init__(self, place: WorkFolder, writer: Writer, rng: random.Random) -> None:
        self._place, self._writer, self._rng = place, writer, rng
        self.killed = 0

    def run(self, count: int) -> list[str]:
        """Returns what went wrong in a number of kills."""
        if count == 0:
            return []
        undisturbed = self._undisturbed()
        faults: list[str] = []
        for number, strike in enumerate(self._strikes(count, undisturbed)):
            between = self._writer.kills_between
            if number % between == 0:
                self._place.renew()
            ended = self._kill(strike)
            self.killed += ended.was_killed
            faults += self._after(strike, ended, undisturbed)
            if number % between == between - 1 or number == count - 1:
                faults += self._left(strike, undisturbed)
        return faults

    def _undisturbed(self) -> _Undisturbed:
        place, writer = self._place, self._writer
        place.renew()
        old = writer.found(place.work)
        done = place.run(writer.command)
        new = writer.found(place.work)
        if writer.following != writer.command:
            place.run(writer.following)
        return _Undisturbed(frozenset((old, new)), place.names(), done.calls, done.seconds)

    def _strikes(self, count: int, undisturbed: _Undisturbed) -> list[int | float]:
        """Returns numbers of calls, spread over all, and times in seconds, in random order."""
        at_calls = -(-count // 2)
        calls: Sequence[int] = range(1, undisturbed.calls + 1)
        spread = [calls[index * len(calls) // at_calls] for index in range(at_calls)]
        times = [self._rng.uniform(0, undisturbed.seconds) for _ in range(count - at_calls)]
        strikes: list[int | float] = [*spread, *times]
        self._rng.shuffle(strikes)
        return strikes

    def _kill(self, strike: int | float) -> Ended:
        """Strikes again, from the beginning, if the command has ended before."""
        ended = self._strike(strike)
        for attempt in range(1, _ATTEMPTS):
            if ended.code:
                break
            self._place.renew()
            ended = self._strike(strike if isinstance(strike, int) else strike / 2**attempt)
        return ended

    def _strike(self, strike: int | float) -> Ended:
        if isinstance(strike, int):
            return self._place.striker.run(self._writer.command, "kill", strike)
        return self._place.striker.kill_after(self._writer.command, strike)

    def _after(self, strike: int | float, ended: Ended, undisturbed: _Undisturbed) -> Iterator[str]:
        """Yields what a reader may not find after a kill."""
        if ended.code and not ended.was_killed:
            yield f"{_named(strike)} it ended with {ended.code}: {ended.stderr.strip()[-200:]}"
        try:
            found = self._writer.found(self._place.work)
        except Exception as error:
            yield f"{_named(strike)} a reader finds {type(error).__name__}: {error}"
        else:
            if found not in undisturbed.found:
                yield f"{_named(strike)} a reader finds {found}, neither the old nor the new"

    def _left(self, strike: int | float, undisturbed: _Undisturbed) -> Iterator[str]:
        """Yields what the next command does not do, or leaves behind."""
        done = self._place.striker.run(self._writer.following)
        if done.code:
            yield f"{_named(strike)} the next command fails: {done.stderr.strip()[-200:]}"
        names, expected = self._place.names(), undisturbed.names
        if names != expected:
            more, fewer = _without(names, expected), _without(expected, names)
            yield f"{_named(strike)} {_LEFT}: {more}, missing: {fewer}"


def _notices_in_place_writer(place: WorkFolder, rng: random.Random) -> bool:
    """Returns whether both faults of a command that writes in place are found."""
    signed = next(writer for writer in writers() if writer.name == "sign")
    command = (*_IN_PLACE, "a.bundle")
    faults = _Trials(place, replace(signed, command=command, following=command), rng).run(12)
    left = [fault for fault in faults if _LEFT in fault]
    return 0 < len(left) < len(faults)


def _named(strike: int | float) -> str:
    return f"killed at call {strike}:" if isinstance(strike, int) else f"killed at {strike:.3f} s:"


def _without(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Returns the names that are not among others, each as often as it is missing there."""
    rest = list(others)
    return [name for name in names if name not in rest or rest.remove(name)]  # type: ignore[func-returns-value]

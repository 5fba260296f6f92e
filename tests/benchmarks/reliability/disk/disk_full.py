"""Lets commands find the disk full at every write: one line, the old stays, nothing is left."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.reliability.disk.faults import Ended
from tests.benchmarks.reliability.disk.writers import (
    ROOT,
    WorkFolder,
    Writer,
    hybrid_deploy,
    key_maker,
    shares,
    writers,
)
from tests.benchmarks.reliability.row import Row
from tests.benchmarks.reliability.tiny_bundle import workshop

_IN_PLACE = (sys.executable, str(ROOT / "tests/benchmarks/reliability/disk/in_place.py"))
_PICTURE = "a.bundle/golden/page.png"
_PRINTED = (
    f"profile a.bundle {_PICTURE} --runs 1 --warmup 0",
    f"run a.bundle {_PICTURE}",
    "compare a.bundle --samples samples",
    "inspect a.bundle",
)
"""Commands that print a report, to an output that is full."""

_CACHE = "cache"
_LEFT = "left behind, or gone"
_FULL_OUTPUT = ("sh", "-c", 'exec "$@" > /dev/full', "sh")
_SMALL_FILES = ("sh", "-c", 'ulimit -f 1; exec "$@"', "sh")  # 512 or 1024 bytes
_REASONS = ("disk is full", "No space left", "ulimit -f", "File too large")


def check(count: int, seed: int, *, bundle: Path | None = None, only: Collection[str] = ()) -> Row:
    """Fills the disk at the writes of every command, one after the other.

    Besides, every command runs once with a limit of the size of a file, and the commands that
    print reports run once with a full output.

    Args:
        count: largest number of writes to fail; the writes of all commands are spread over it.
        seed: the writes are the same for every seed.
        bundle: a small bundle to start with; None exports one.
        only: names of the commands; empty for all.
    """
    began = time.perf_counter()
    chosen = [w for w in (*writers(), key_maker()) if not only or w.name in only]
    with workshop(bundle) as (original, scratch):
        place = WorkFolder(scratch, original)
        trials = [_Trials(place, writer) for writer in chosen]
        wanted = shares([trial.writes for trial in trials], count)
        faults = [
            fault for trial, most in zip(trials, wanted, strict=True) for fault in trial.run(most)
        ]
        printed = [fault for arguments in _PRINTED for fault in _printed_faults(place, arguments)]
        caught = _notices_in_place_writer(place)
    tried = sum(trial.tried for trial in trials) + len(_PRINTED)
    writes = sum(trial.writes for trial in trials)
    return Row(
        name=f"full disk during {', '.join(writer.name for writer in chosen)} and reports",
        count=tried,
        result=f"{len(faults) + len(printed)} ended otherwise than in one line, with the old as it "
        f"was; the commands write {writes} times",
        faults=(*faults, *printed),
        control="a command that rewrites a manifest in place and leaves a copy",
        caught=caught,
        seconds=time.perf_counter() - began,
    )


class _Trials:
    """Fails the writes of one command, one after the other.

    Attributes:
        writes: number of writes of the command.
        tried: number of runs with a failed write.
    """

    def __init__(self, place: WorkFolder, writer: Writer) -> None:
        self._place, self._writer, self.tried = place, writer, 0
        place.renew()
        self._old, self._names = writer.found(place.work), self._listed()
        self.writes = place.run(writer.command, "full").calls
        self._new = writer.found(place.work)
        self._finished_names = self._listed()

    def run(self, most: int) -> Iterator[str]:
        """Yields what went wrong, in at most so many runs."""
        number = min(most, self.writes)
        for index in range(number):
            at = 1 + index * self.writes // number
            self._place.renew()
            yield from self._faults(
                f"write {at}", self._place.striker.run(self._writer.command, "full", at)
            )
        if number:
            self._place.renew()
            limited = (*_SMALL_FILES, *self._writer.command)
            yield from self._faults("small files", self._place.striker.run(limited, "full"))

    def _faults(self, trial: str, ended: Ended) -> Iterator[str]:
        self.tried += 1
        name = f"{self._writer.name}, {trial}:"
        if ended.code:
            yield from (f"{name} {fault}" for fault in message_faults(ended))
        try:
            found = self._writer.found(self._place.work)
        except Exception as error:
            yield f"{name} a reader finds {type(error).__name__}: {error}"
        else:
            if found != (self._old if ended.code else self._new):
                yield f"{name} ended with {ended.code}, and a reader finds {found}"
        listed, expected = self._listed(), self._names if ended.code else self._finished_names
        if changed := (listed - expected) + (expected - listed):
            yield f"{name} {_LEFT}: {sorted(changed)}"

    def _listed(self) -> Counter[str]:
        """Returns what is there; of what the cache keeps, only what has a temporary name."""
        return Counter(
            name
            for name in self._place.names()
            if not name.startswith(_CACHE) or Path(name).name.startswith(".")
        )


def message_faults(ended: Ended) -> Iterator[str]:
    """Yields what is wrong with the end of a command that found the disk full."""
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    if ended.code != 1:
        yield f"exit code {ended.code} in place of 1"
    if len(errors) != 1 or ended.stderr.splitlines()[-1:] != errors:
        yield f"not one line: {ended.stderr.strip()[-300:]}"
    elif not any(reason in ended.stderr for reason in _REASONS):
        yield f"no reason: {errors[0]}"
    if "Traceback" in ended.stderr or "failed unexpectedly" in ended.stderr:
        yield f"a foreign exception: {ended.stderr.strip()[-300:]}"


def _printed_faults(place: WorkFolder, arguments: str) -> Iterator[str]:
    place.renew()
    ended = place.striker.run((*_FULL_OUTPUT, *hybrid_deploy(arguments)))
    faults = message_faults(ended) if ended.code else ("exit code 0, though its text is lost",)
    yield from (f"{arguments} > /dev/full: {fault}" for fault in faults)


def _notices_in_place_writer(place: WorkFolder) -> bool:
    """Returns whether the faults of a command that writes in place are found."""
    signed = next(writer for writer in writers() if writer.name == "sign")
    faults = list(_Trials(place, replace(signed, command=(*_IN_PLACE, "a.bundle"))).run(9))
    wanted = ("not one line", "a reader finds", _LEFT)
    return all(any(words in fault for fault in faults) for words in wanted)

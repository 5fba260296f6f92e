"""Builds engines in eight processes at a time, into one cache that is read meanwhile."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hybrid_deploy.cache_dir import CACHE_VARIABLE
from hybrid_deploy.errors import BuildError
from hybrid_deploy.runtime.engines.cache import PLAN_FILE, RECORD_FILE, EngineCache, read_plan
from tests.benchmarks.reliability.disk.writers import ROOT, hybrid_deploy
from tests.benchmarks.reliability.row import Row
from tests.benchmarks.reliability.tiny_bundle import workshop

_PROCESSES = 8
_TARGETS = ("rtx:sm_86", "rtx:sm_86", "rtx:sm_89", "rtx:sm_120")  # half of them want the same
_LIMIT_SECONDS = 300.0  # a process that takes longer waits forever
_PAUSE_SECONDS = 0.005
_CONTROL_SECONDS = 0.5
_KEY_DIGITS = 64


def check(count: int, seed: int, *, bundle: Path | None = None) -> Row:
    """Builds the same and different engines at the same time, round after round.

    Args:
        count: number of builds; 8 at a time are a round.
        seed: seed of what each process builds.
        bundle: a small bundle to build; None exports one.
    """
    began, rng = time.perf_counter(), random.Random(seed)
    with workshop(bundle) as (original, folder):
        shutil.copytree(original, folder / "a.bundle")
        cache = EngineCache(folder / "cache" / "engines")
        faults, reads = [], 0
        for begin in range(0, count, _PROCESSES):
            targets = [rng.choice(_TARGETS) for _ in range(min(_PROCESSES, count - begin))]
            shutil.rmtree(folder / "cache", ignore_errors=True)
            with _Reader(cache) as reader:
                found = list(_round_faults(folder, targets, cache))
            reads += reader.reads
            faults += [f"builds {begin} of seed {seed}: {f}" for f in (*found, *reader.faults)]
        caught = _notices_writes_in_place(cache)
    return Row(
        name="builds of engines, 8 processes at a time into one cache",
        count=count,
        result=f"every engine built once and whole, {reads} reads meanwhile"
        if not faults
        else f"{len(faults)} builds or reads went wrong",
        faults=tuple(faults),
        control="an engine that is copied into the cache in place",
        caught=caught,
        seconds=time.perf_counter() - began,
    )


def _round_faults(folder: Path, targets: Sequence[str], cache: EngineCache) -> Iterator[str]:
    """Yields what goes wrong when one process for each target builds at the same time."""
    results: Counter[tuple[object, object]] = Counter()
    for target, process in [(target, _start(folder, target)) for target in targets]:
        try:
            stdout, stderr = process.communicate(timeout=_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            yield f"{target}: no end after {_LIMIT_SECONDS:.0f} s"
            continue
        if process.returncode:
            yield f"{target} ended with {process.returncode}: {stderr.strip()[-300:]}"
            continue
        rows = json.loads(stdout)
        results.update((target, row["graph"]) for row in rows if row["result"] == "built")
        if [row["graph"] for row in rows] != ["encoder", "prefill", "step"]:
            yield f"{target} reports {rows}"
    yield from (f"{graph} was built {n} times" for graph, n in results.items() if n != 1)
    engines = [path.name for path in cache.folder.iterdir() if path.is_dir()]
    if left := [engine for engine in engines if len(engine) != _KEY_DIGITS]:
        yield f"left behind: {left}"
    if len(engines) - len(left) != len(results):
        yield f"{len(engines) - len(left)} engines in place of {len(results)}"
    yield from _unreadable(cache)


def _start(folder: Path, target: str) -> subprocess.Popen[str]:
    variables = {"PYTHONPATH": str(ROOT), CACHE_VARIABLE: str(folder / "cache")}
    return subprocess.Popen(
        hybrid_deploy(f"build a.bundle --target {target} --variant fp32 --format json"),
        cwd=folder,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class _Reader:
    """Reads every engine of a cache again and again, in a thread, as sessions do.

    Attributes:
        faults: what could not be read.
        reads: number of engines that were read.
    """

    def __init__(self, cache: EngineCache) -> None:
        self._cache, self._ended = cache, threading.Event()
        self._thread = threading.Thread(target=self._read)
        self.faults: set[str] = set()
        self.reads = 0

    def __enter__(self) -> _Reader:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._ended.wait(_PAUSE_SECONDS):
            self.faults.update(_unreadable(self._cache, self._count))

    def _count(self) -> None:
        self.reads += 1


def _unreadable(cache: EngineCache, is_read: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Yields why an engine that is there cannot be read."""
    for entry in cache.folder.iterdir() if cache.folder.is_dir() else ():
        if len(entry.name) == _KEY_DIGITS:
            try:
                read_plan(entry / PLAN_FILE)
                is_read()
            except BuildError as error:
                yield str(error)


def _notices_writes_in_place(cache: EngineCache) -> bool:
    """Returns whether a reader notices an engine that is copied in place, part by part."""
    entry = next(path for path in cache.folder.iterdir() if len(path.name) == _KEY_DIGITS)
    plan, record = (entry / PLAN_FILE).read_bytes(), (entry / RECORD_FILE).read_bytes()
    shutil.rmtree(entry)
    with _Reader(cache) as reader:
        entry.mkdir()
        (entry / RECORD_FILE).write_bytes(record)
        (entry / PLAN_FILE).write_bytes(plan[: len(plan) // 2])
        time.sleep(_CONTROL_SECONDS)
        (entry / PLAN_FILE).write_bytes(plan)
    return bool(reader.faults)

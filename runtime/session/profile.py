"""Measures the latency of every stage of a session on input files."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hybrid_deploy.argument_checks import check_integer, paths_of
from hybrid_deploy.errors import InputError
from hybrid_deploy.progress import Progress, silent
from hybrid_deploy.runtime.session.prefetch import MAX_BATCH
from hybrid_deploy.runtime.session.session import Session, Timings

_KIB_PER_MB = 1e6 / 1024


@dataclass(frozen=True)
class Latency:
    """The latency of one stage.

    Attributes:
        stage: name of the stage.
        count: number of measurements.
        p50_ms: median in milliseconds; NaN without measurements.
        p90_ms: 90th percentile in milliseconds; NaN without measurements.
    """

    stage: str
    count: int
    p50_ms: float
    p90_ms: float


@dataclass(frozen=True)
class Profile:
    """The speed of a session.

    Attributes:
        stages: latency of each stage, in the order in which they run; the last one is the total.
        tokens_per_s: number of tokens of all runs divided by the seconds of all runs.
        peak_rss_mb: largest resident RAM of the process so far, in 10^6 bytes.
    """

    stages: tuple[Latency, ...]
    tokens_per_s: float
    peak_rss_mb: float

    def stage(self, name: str) -> Latency:
        """Returns the latency of the stage with this name."""
        return next(latency for latency in self.stages if latency.stage == name)


def profile_session(
    session: Session,
    files: Sequence[str | Path],
    *,
    runs: int = 50,
    warmup: int = 5,
    batch: int = 1,
    progress: Progress = silent,
) -> Profile:
    """Runs files through a session many times; returns the latency of every stage.

    Args:
        session: session to measure.
        files: input files, used in turn.
        runs: number of timed runs.
        warmup: number of runs before the first timed one.
        batch: number of files of a run.
        progress: called as stage `profile` with the number of runs done, warm-up included.

    Raises:
        UsageError: `runs` or `batch` is no whole number from 1 on, or `warmup` from 0 on.
        InputError: a file cannot be used.
    """
    check_integer("runs", runs, 1)
    check_integer("batch", batch, 1, MAX_BATCH)
    check_integer("warmup", warmup, 0)
    if not (files := paths_of(files)):
        raise InputError("no input files were given")
    timings, tokens = [], 0
    start = time.perf_counter()
    progress("profile", 0, warmup + runs)
    for number in range(-warmup, runs):
        if number == 0:
            start = time.perf_counter()
        paths = [files[(number * batch + i) % len(files)] for i in range(batch)]
        results, timing = session.run_files(paths)
        if number >= 0:
            timings.append(timing)
            tokens += sum(len(result.tokens) for result in results)
        progress("profile", warmup + number + 1, warmup + runs)
    return summarize(timings, tokens, time.perf_counter() - start)


def summarize(timings: Sequence[Timings], tokens: int, seconds: float) -> Profile:
    """Returns the profile of many runs.

    Args:
        timings: times of each run.
        tokens: number of tokens of all runs.
        seconds: duration of all runs.
    """
    stages = (
        _latency("preprocess", [t.preprocess_ms for t in timings]),
        _latency("encoder", [t.encoder_ms for t in timings]),
        _latency("first token", [t.first_token_ms for t in timings]),
        _latency("next token", [ms for t in timings for ms in t.step_ms]),
        _latency("total", [t.total_ms for t in timings]),
    )
    return Profile(stages, tokens / seconds, peak_rss_mb())


def peak_rss_mb() -> float:
    """Returns the largest resident RAM of this process so far, in 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB_PER_MB


def _latency(stage: str, values: Sequence[float]) -> Latency:
    if not values:
        return Latency(stage, 0, float("nan"), float("nan"))
    p50, p90 = np.percentile(values, [50, 90])
    return Latency(stage, len(values), float(p50), float(p90))

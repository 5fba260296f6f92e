"""Where the time goes: the latency of every stage, measured on real inputs."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hybrid_deploy.errors import UsageError
from hybrid_deploy.progress import Progress, silent
from hybrid_deploy.runtime.session.session import Session, Timings

_KIB_PER_MB = 1e6 / 1024


@dataclass(frozen=True)
class Latency:
    """One stage, in milliseconds.

    Attributes:
        stage: what was timed.
        count: how often.
        p50_ms: median.
        p90_ms: 90th percentile.
    """

    stage: str
    count: int
    p50_ms: float
    p90_ms: float


@dataclass(frozen=True)
class Profile:
    """How fast a session is.

    Attributes:
        stages: latency of each stage, from the file to the last token.
        tokens_per_s: tokens of all runs over the time of all runs.
        peak_rss_mb: largest memory of the process so far, in 10^6 bytes.
    """

    stages: tuple[Latency, ...]
    tokens_per_s: float
    peak_rss_mb: float

    def stage(self, name: str) -> Latency:
        """Returns one stage by name."""
        return next(latency for latency in self.stages if latency.stage == name)


def profile_session(
    session: Session,
    files: Sequence[Path],
    *,
    runs: int = 50,
    warmup: int = 5,
    batch: int = 1,
    progress: Progress = silent,
) -> Profile:
    """Runs files through a session, again and again, and times every stage.

    Args:
        session: what is measured.
        files: inputs, used in turn.
        runs: how many timed runs.
        warmup: how many runs before the first timed one.
        batch: how many files a run takes.
        progress: called after every run, warm-up included, as stage `profile`.

    Raises:
        UsageError: a count is not positive.
        InputError: a file cannot be used.
    """
    if runs < 1 or batch < 1 or warmup < 0:
        raise UsageError("a profile needs at least one run of at least one file")
    timings, tokens = [], 0
    began = time.perf_counter()
    for number in range(-warmup, runs):
        if number == 0:
            began = time.perf_counter()
        chosen = [files[(number * batch + i) % len(files)] for i in range(batch)]
        results, timing = session.run_files(chosen)
        if number >= 0:
            timings.append(timing)
            tokens += sum(len(result.tokens) for result in results)
        progress("profile", warmup + number + 1, warmup + runs)
    return summarize(timings, tokens, time.perf_counter() - began)


def summarize(timings: Sequence[Timings], tokens: int, seconds: float) -> Profile:
    """Makes a profile from the timings of many runs."""
    stages = (
        _latency("preprocess", [t.preprocess_ms for t in timings]),
        _latency("encoder", [t.encoder_ms for t in timings]),
        _latency("first token", [t.first_token_ms for t in timings]),
        _latency("next token", [ms for t in timings for ms in t.step_ms]),
        _latency("total", [t.total_ms for t in timings]),
    )
    return Profile(stages, tokens / seconds, peak_rss_mb())


def peak_rss_mb() -> float:
    """Returns the largest resident memory of this process so far, in 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB_PER_MB


def _latency(stage: str, values: Sequence[float]) -> Latency:
    if not values:
        return Latency(stage, 0, float("nan"), float("nan"))
    p50, p90 = np.percentile(values, [50, 90])
    return Latency(stage, len(values), float(p50), float(p90))

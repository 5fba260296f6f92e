"""Times a loop that makes tokens, by the clock of the host and, on a GPU, by its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


class SkippedError(Exception):
    """A rival cannot run here; the message says why."""


@dataclass(frozen=True)
class Timing:
    """Medians over rounds, per token of the batch.

    Attributes:
        gpu_ms: between two events around the loop; None without a GPU.
        host_ms: from the first call to the last token in the host's memory.
        note: how it ran.
    """

    gpu_ms: float | None
    host_ms: float
    note: str = ""


def time_loop(
    generate: Callable[[], None],
    tokens: int,
    rounds: int,
    gpu_clock: Callable[[Callable[[], None]], float] | None,
    note: Callable[[], str] = str,
) -> Timing:
    """Times `generate`, which makes `tokens` tokens and ends when the host has them.

    Args:
        generate: the loop.
        tokens: how many it makes for each sequence.
        rounds: how often it is timed, after two rounds that are not.
        gpu_clock: gives the milliseconds between events around a call.
        note: is asked at the end how it ran.
    """
    for _ in range(2):
        generate()
    gpu, host = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        generate()
        host.append((time.perf_counter() - started) * 1e3)
        if gpu_clock is not None:
            gpu.append(gpu_clock(generate))
    gpu_ms = statistics.median(gpu) / tokens if gpu else None
    return Timing(gpu_ms, statistics.median(host) / tokens, note())

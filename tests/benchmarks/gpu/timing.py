"""Times a loop that generates tokens, with the host's clock and on a GPU with its events."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


class SkippedError(Exception):
    """A rival cannot run here; the message says why."""


@dataclass(frozen=True)
class Timing:
    """Times per token of the batch: medians over rounds.

    Attributes:
        gpu_ms: milliseconds between two CUDA events around the loop; None without a GPU.
        host_ms: milliseconds from the first call to the last token in the host's RAM.
        note: description of the run, such as the version of the library.
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
    """Times a loop and returns the median times of a token.

    Args:
        generate: the loop; it returns when all tokens are in the host's RAM.
        tokens: number of tokens that the loop generates for each sequence.
        rounds: number of timed rounds, after two rounds as a warm-up.
        gpu_clock: function that runs a call and returns its milliseconds on the GPU; None without
            a GPU.
        note: function that returns the description of the run; it is called after all rounds.
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

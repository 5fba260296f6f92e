"""Sixteen threads on one session and on several: every text is the one that was computed alone.

Each thread decodes greedily, with a prompt, with beams and as a stream, and cancels runs. While
they work, the memory of the process must not grow.
"""

from __future__ import annotations

import itertools
import random
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hybrid_deploy.export.exporter import run_export
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.session.results import GenerationResult
from hybrid_deploy.runtime.session.session import Session, load_session
from tests.benchmarks.reliability.row import Row
from tests.benchmarks.soak.growth import resident_bytes
from tests.conftest import make_tiny, tiny_job
from tests.fakes.session_answers import LONG_PROMPT

NAME = "16 threads on one session and on several"
CONTROL = "a session whose threads share one buffer for their inputs"

_THREADS, _SESSIONS, _INPUTS = 16, 3, 8
_CONTROL_SECONDS = 5
_WARM_UP = 0.3  # part of the time in which caches and arenas of the threads fill
_LARGEST_GROWTH_BYTES = 10_000_000
_MOST_FAULTS = 20

Tokens = tuple[tuple[int, ...], ...]
Run = Callable[[Session, int], Tokens]
"""Decodes the input of a number, and returns the tokens of its sequences."""


def check(count: int, seed: int) -> Row:
    """Runs the threads for some time, half of it on one session and half on several.

    Args:
        count: time in seconds.
        seed: seed of the order of the runs.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="threads-") as folder:
        path = Path(folder, "tiny.bundle")
        run_export(tiny_job(make_tiny()), path)
        sessions = [load_session(path, threads=1) for _ in range(_SESSIONS)]
        faults: list[str] = []
        total = 0
        for used in (sessions[:1], sessions):
            runs, wrong = hammer(used, RUNS, count / 2, seed)
            total, faults = total + runs, faults + wrong
        caught = bool(hammer(sessions[:1], [_SharedInput()], _CONTROL_SECONDS, seed)[1])
    result = f"{total:,} runs, {len(faults):,} faults"
    return Row(NAME, count, result, tuple(faults), CONTROL, caught, time.perf_counter() - began)


def hammer(
    sessions: Sequence[Session], runs: Sequence[Run], seconds: float, seed: int
) -> tuple[int, list[str]]:
    """Runs the threads.

    Args:
        sessions: the sessions; each thread takes turns at them.
        runs: the ways of decoding.
        seconds: time in seconds.
        seed: seed of the order of the runs.

    Returns:
        The number of runs, and a line for each fault.
    """
    expected = [[run(sessions[0], number) for number in range(_INPUTS)] for run in runs]
    end = time.monotonic() + seconds
    warm = end - (1 - _WARM_UP) * seconds
    faults: list[str] = []

    def work(thread: int) -> int:
        rng = random.Random(seed * _THREADS + thread)
        for done in itertools.count():
            if time.monotonic() > end or len(faults) > _MOST_FAULTS:
                return done
            kind, number = rng.randrange(len(runs)), rng.randrange(_INPUTS)
            session = rng.choice(sessions)
            try:
                tokens = runs[kind](session, number)
            except Exception as error:
                faults.append(f"seed {seed}, thread {thread}, run {done}: {error!r}")
                return done
            if tokens != expected[kind][number]:
                faults.append(f"seed {seed}, thread {thread}, run {done}: {tokens}")
        raise AssertionError("the count has no end")

    with ThreadPoolExecutor(_THREADS) as pool:
        threads = [pool.submit(work, thread) for thread in range(_THREADS)]
        time.sleep(max(0.0, warm - time.monotonic()))
        before = resident_bytes()
        done = sum(thread.result() for thread in threads)
    growth = resident_bytes() - before
    if growth > _LARGEST_GROWTH_BYTES:
        faults.append(f"seed {seed}: the process grew by {growth / 1e6:.1f} MB")
    return done, faults


def greedy(session: Session, number: int) -> Tokens:
    """Decodes greedily."""
    return _tokens(session.run_arrays({"image": _image(number)})[0])


def prompted(session: Session, number: int) -> Tokens:
    """Continues a prompt that is long enough for the prefill graph."""
    return _tokens(session.run_arrays({"image": _image(number)}, prompt=LONG_PROMPT)[0])


def beams(session: Session, number: int) -> Tokens:
    """Searches with beams, and returns all of them."""
    options = GenerateOptions(beams=3, n_best=3)
    results, _ = session.run_arrays({"image": _image(number)}, options=options)
    return _tokens([beam for result in results for beam in (result, *result.alternatives)])


def streamed(session: Session, number: int) -> Tokens:
    """Reads a stream to its end."""
    with session.stream({"image": _image(number)}) as stream:
        for _ in stream:
            pass
    return _tokens(stream.results)


def cancelled(session: Session, number: int) -> Tokens:
    """Cancels a run after its first token, by the event that all backends ask between tokens."""
    cancel = threading.Event()
    results, _ = session.run_arrays(
        {"image": _image(number)}, cancel=cancel, on_token=lambda event: cancel.set()
    )
    return _tokens(results)


RUNS: tuple[Run, ...] = (greedy, prompted, beams, streamed, cancelled)


class _SharedInput:
    """Decodes greedily, from a buffer that all threads write their images to."""

    def __init__(self) -> None:
        self._buffer = np.zeros((2, 1, 8, 24), np.float32)

    def __call__(self, session: Session, number: int) -> Tokens:
        self._buffer[:] = np.resize(_image(number), self._buffer.shape)
        return _tokens(session.run_arrays({"image": self._buffer})[0])


def _image(number: int) -> np.ndarray:
    """Returns noise, of another batch and width for each number."""
    size = 1 + number % 3, 1, 8, 16 + 8 * (number % 4)
    return np.random.default_rng(number).standard_normal(size).astype(np.float32)


def _tokens(results: Sequence[GenerationResult]) -> Tokens:
    return tuple(result.tokens for result in results)

"""A contender's process.

Run as `python -m tests.benchmarks.cpu.worker prepare|serve MODULE JOB`.

`serve` writes lines of JSON: first the times of import and loading; then one line for each request
`turn COUNT` on the standard input, which generates COUNT tokens; at the end of the input the peak
RAM. This module needs only the packages of the contender itself.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any, cast

from tests.benchmarks.cpu.contender import Contender, EncodesAlone, Generated, Job, Runner

_KB_PER_MB = 1024
_NS_PER_MS = 1e6
_ERROR_LETTERS = 400


def main() -> None:
    """Runs `prepare` or `serve`, as the command line names it."""
    verb, name, text = sys.argv[1:]
    job = Job.from_json(text)
    if verb == "prepare":
        _contender(name).prepare(job)
        return
    answers = take_stdout()
    pin(job.threads)
    try:
        _serve(name, job, answers)
    except Exception as error:
        _answer(answers, {"error": f"{type(error).__name__}: {error}"[:_ERROR_LETTERS]})
        raise


def pin(threads: int) -> None:
    """Pins this process and its children to as many cores as `threads`, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _serve(name: str, job: Job, answers: IO[str]) -> None:
    began = time.perf_counter()
    contender = _contender(name)
    imported = time.perf_counter()
    import numpy as np

    with np.load(job.inputs) as file:
        inputs = {key: np.ascontiguousarray(file[key]) for key in file.files}
    ready = time.perf_counter()
    runner = contender.load(job, inputs)
    loaded = time.perf_counter()
    versions = {package: importlib.metadata.version(package) for package in contender.PACKAGES}
    times = {"import_ms": (imported - began) * 1e3, "load_ms": (loaded - ready) * 1e3}
    _answer(answers, {**times, "versions": versions})
    for line in sys.stdin:
        _answer(answers, _turn(runner, int(line.removeprefix("turn"))))
    _answer(answers, {"peak_mb": peak_mb()})


def _contender(name: str) -> Contender:
    return cast(Contender, importlib.import_module(f"tests.benchmarks.cpu.contenders.{name}"))


def take_stdout() -> IO[str]:
    """Returns the pipe of the answers, and redirects later prints of libraries to the log."""
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return pipe


def _answer(answers: IO[str], record: dict[str, Any]) -> None:
    answers.write(json.dumps(record) + "\n")
    answers.flush()


def _turn(runner: Runner, count: int) -> dict[str, Any]:
    """Measures one generation, after shorter calls that fill the CPU's caches."""
    encoder_ms = None
    if isinstance(runner, EncodesAlone):
        began = time.perf_counter()
        runner.encode()
        encoder_ms = (time.perf_counter() - began) * 1e3
    first_ms, _ = _timed(runner, 1)
    waited = _waited_ms()
    total_ms, generated = _timed(runner, count)
    return {
        "encoder_ms": encoder_ms,
        "first_ms": first_ms,
        "total_ms": total_ms,
        "waited_ms": _waited_ms() - waited,
        "tokens": [int(token) for token in generated.tokens],
    }


def _timed(runner: Runner, count: int) -> tuple[float, Generated]:
    began = time.perf_counter()
    generated = runner.generate(count)
    return (time.perf_counter() - began) * 1e3 - generated.outside_ms, generated


def _waited_ms() -> float:
    """Returns the milliseconds in which threads of this process were ready but no core was free."""
    waited_ns = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            waited_ns += int(task.read_text().split()[1])
        except OSError:  # the thread has ended
            continue
    return waited_ns / _NS_PER_MS


def peak_mb() -> float | None:
    """Returns the peak RAM of this process in MB; None without Linux's status file."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = (line.split() for line in status.read_text().splitlines())
    return next(int(words[1]) for words in lines if words[0] == "VmHWM:") / _KB_PER_MB


if __name__ == "__main__":
    main()

"""Worker processes that check one seed after another, each seed within a time limit."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection

from tests.benchmarks.fuzz_export.check import Outcome, Verdict, outcome_of

Check = Callable[[int], Outcome]
_START_SECONDS = 120.0  # a new process imports PyTorch first


def check_all(
    seeds: Iterable[int], jobs: int, limit_seconds: float, check: Check = outcome_of
) -> Iterator[Outcome]:
    """Yields the outcome of every seed when it is known.

    Args:
        seeds: the seeds.
        jobs: number of processes at a time.
        limit_seconds: time after which the process of a seed is ended.
        check: function that checks one seed, importable in another process.
    """
    local = threading.local()
    workers: list[_Worker] = []

    def run(seed: int) -> Outcome:
        worker = getattr(local, "worker", None)
        if worker is None:
            worker = local.worker = _Worker(check, limit_seconds)
            workers.append(worker)
        outcome: Outcome = worker.run(seed)
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for future in as_completed([pool.submit(run, seed) for seed in seeds]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
            for worker in workers:
                worker.stop()


class _Worker:
    """One process, which is started again after a seed that ended it."""

    def __init__(self, check: Check, limit_seconds: float) -> None:
        self._check = check
        self._limit_seconds = limit_seconds
        self._start()

    def run(self, seed: int) -> Outcome:
        """Returns the outcome of a seed."""
        self._pipe.send(seed)
        try:
            if self._pipe.poll(self._limit_seconds):
                outcome: Outcome = self._pipe.recv()
                return outcome
        except (EOFError, OSError):
            self._process.join()
            reason = f"the process ended with code {self._process.exitcode}"
            self._start()
            return Outcome(seed, Verdict.TRACEBACK, reason)
        self.stop()
        self._start()
        return Outcome(seed, Verdict.TIMEOUT, f"more than {self._limit_seconds:.0f} s")

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._check), daemon=True)
        self._process.start()
        other.close()
        if not self._pipe.poll(_START_SECONDS) or self._pipe.recv() != "ready":
            raise RuntimeError("a worker process does not start")


def _serve(pipe: Connection, check: Check) -> None:
    """Checks every seed that comes through a pipe."""
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    pipe.send("ready")
    while True:
        try:
            seed = pipe.recv()
        except EOFError:
            return
        pipe.send(check(seed))

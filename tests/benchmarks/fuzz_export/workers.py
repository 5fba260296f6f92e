"""Worker processes that check one seed after another, each seed within a time limit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import torch

from tests.benchmarks.fuzz_export.check import Outcome, Verdict, outcome_of
from tests.worker_process import NoAnswerError, WorkerProcess

Check = Callable[[int], Outcome]


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
    workers: list[WorkerProcess[Outcome]] = []

    def run(seed: int) -> Outcome:
        worker = getattr(local, "worker", None)
        if worker is None:
            worker = local.worker = WorkerProcess(_OnOneThread(check), limit_seconds)
            workers.append(worker)
        return _asked(worker, seed)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for future in as_completed([pool.submit(run, seed) for seed in seeds]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
            for worker in workers:
                worker.stop()


@dataclass(frozen=True)
class _OnOneThread:
    """A check that runs PyTorch on one thread."""

    check: Check

    def __call__(self, seed: int) -> Outcome:
        torch.set_num_threads(1)
        return self.check(seed)


def _asked(worker: WorkerProcess[Outcome], seed: int) -> Outcome:
    try:
        return worker.ask(seed)
    except NoAnswerError as error:
        verdict = Verdict.TIMEOUT if error.timed_out else Verdict.TRACEBACK
        return Outcome(seed, verdict, str(error))

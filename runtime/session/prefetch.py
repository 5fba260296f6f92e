"""Runs many inputs: while one batch is decoded, a thread prepares the next ones."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from numpy.typing import NDArray

from hybrid_deploy.argument_checks import check_integer, shown
from hybrid_deploy.errors import HybridDeployError, UsageError
from hybrid_deploy.runtime.deadline import Until
from hybrid_deploy.runtime.session.results import GenerationResult, Timings

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Item = TypeVar("Item")

MAX_BATCH = 65_536
"""Largest number of inputs of a batch."""


@dataclass(frozen=True)
class Outcome(Generic[Item]):
    """The result of one input, or the error that it failed with.

    Attributes:
        item: the input as the caller passed it.
        result: tokens and text of the input; None if it failed.
        timings: times of the input's batch; None if the input failed.
        error: why the input failed; None if it did not.
    """

    item: Item
    result: GenerationResult | None = None
    timings: Timings | None = None
    error: HybridDeployError | None = None


@dataclass(frozen=True)
class _Prepared:
    """The encoder inputs of a batch, and the milliseconds of their preprocessing."""

    arrays: Arrays
    milliseconds: float


@dataclass(frozen=True)
class Prefetcher(Generic[Item]):
    """Prepares batches in a thread of its own, ahead of the decoding.

    Attributes:
        prepare: function that makes the encoder inputs of a batch; runs in the thread.
        run: function that decodes a batch; runs in the caller's thread.
        cancelled: function that returns whether no further batch may start.
        deadline: function that returns when a batch must be prepared that starts at a time; both
            are values of `time.perf_counter`, and None sets no deadline.
        batch: number of inputs in a batch.
        ahead: number of batches that are prepared while one is decoded.
    """

    prepare: Callable[[Sequence[Item]], Arrays]
    run: Callable[[Arrays], tuple[list[GenerationResult], Timings]]
    cancelled: Callable[[], bool]
    deadline: Callable[[float], float | None]
    batch: int
    ahead: int

    def __post_init__(self) -> None:
        check_integer("batch", self.batch, 1, MAX_BATCH)
        check_integer("ahead", self.ahead, 1, MAX_BATCH)

    def outcomes(self, items: Iterable[Item]) -> Iterator[Outcome[Item]]:
        """Yields the outcome of every input, in order; takes inputs only when they are needed.

        Raises:
            UsageError: the inputs are a single one, or none.
        """
        if isinstance(items, (str, bytes, Path, Mapping)) or not isinstance(items, Iterable):
            raise UsageError(f"several inputs were expected, got {shown(items)}; give a list")
        return self._outcomes(iter(items))

    def _outcomes(self, source: Iterator[Item]) -> Iterator[Outcome[Item]]:
        queue: deque[tuple[list[Item], Future[_Prepared]]] = deque()
        with ThreadPoolExecutor(1, "prepare") as pool:
            try:
                while not self.cancelled():
                    while len(queue) <= self.ahead:
                        group = list(itertools.islice(source, self.batch))
                        if not group:
                            break
                        queue.append((group, pool.submit(self._prepare_timed, group)))
                    if not queue:
                        return
                    group, prepared = queue.popleft()
                    yield from self._batch_outcomes(group, prepared.result)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _prepare_timed(self, items: Sequence[Item]) -> _Prepared:
        start = time.perf_counter()
        with Until(self.deadline(start)):
            arrays = self.prepare(items)
        return _Prepared(arrays, (time.perf_counter() - start) * 1e3)

    def _batch_outcomes(
        self, group: Sequence[Item], wait: Callable[[], _Prepared]
    ) -> Iterator[Outcome[Item]]:
        """Yields the outcomes of a batch; if it fails, runs each of its inputs alone."""
        try:
            prepared = wait()
            results, timings = self.run(prepared.arrays)
        except HybridDeployError as error:
            if len(group) == 1:
                yield Outcome(group[0], error=error)
                return
        else:
            for item, result in zip(group, results, strict=True):
                yield Outcome(item, result, replace(timings, preprocess_ms=prepared.milliseconds))
            return
        for item in group:
            yield from self._batch_outcomes([item], partial(self._prepare_timed, [item]))

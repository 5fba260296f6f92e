"""Many inputs in a row: while some are decoded, a thread makes the next ones ready."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeAlias, TypeVar

from numpy.typing import NDArray

from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.runtime.session.results import GenerationResult, Timings

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Outcome(Generic[Item]):
    """What became of one input.

    Attributes:
        item: as it was given.
        result: what was made of it; None if it failed.
        timings: of the batch it was in; None if it failed.
        error: why it failed.
    """

    item: Item
    result: GenerationResult | None = None
    timings: Timings | None = None
    error: HybridDeployError | None = None


@dataclass(frozen=True)
class _Prepared:
    """The arrays of a batch, and how long it took to make them."""

    arrays: Arrays
    milliseconds: float


@dataclass(frozen=True)
class Prefetcher(Generic[Item]):
    """What is done with inputs.

    Attributes:
        prepare: makes the arrays of a batch; called in a thread of its own.
        run: decodes a batch.
        cancelled: tells whether nobody wants more.
        batch: how many inputs are decoded together.
        ahead: how many batches are prepared before they are needed.
    """

    prepare: Callable[[Sequence[Item]], Arrays]
    run: Callable[[Arrays], tuple[list[GenerationResult], Timings]]
    cancelled: Callable[[], bool]
    batch: int
    ahead: int

    def outcomes(self, items: Iterable[Item]) -> Iterator[Outcome[Item]]:
        """Yields what becomes of inputs, in their order; they are asked for as they are needed."""
        source = iter(items)
        waiting: deque[tuple[list[Item], Future[_Prepared]]] = deque()
        with ThreadPoolExecutor(1, "prepare") as pool:
            try:
                while not self.cancelled():
                    while len(waiting) <= self.ahead:
                        group = list(itertools.islice(source, self.batch))
                        if not group:
                            break
                        waiting.append((group, pool.submit(self._timed, group)))
                    if not waiting:
                        return
                    group, prepared = waiting.popleft()
                    yield from self._of(group, prepared.result)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _timed(self, items: Sequence[Item]) -> _Prepared:
        began = time.perf_counter()
        arrays = self.prepare(items)
        return _Prepared(arrays, (time.perf_counter() - began) * 1e3)

    def _of(
        self, group: Sequence[Item], prepared: Callable[[], _Prepared]
    ) -> Iterator[Outcome[Item]]:
        """Yields what becomes of a batch; where it fails, each input is tried alone."""
        try:
            ready = prepared()
            results, timings = self.run(ready.arrays)
        except HybridDeployError as error:
            if len(group) == 1:
                yield Outcome(group[0], error=error)
                return
        else:
            for item, result in zip(group, results, strict=True):
                yield Outcome(item, result, replace(timings, preprocess_ms=ready.milliseconds))
            return
        for item in group:
            yield from self._of([item], lambda alone=item: self._timed([alone]))  # type: ignore[misc]

"""The stages of an export, with their times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StageTimes:
    """Times the stages, and tells each when it is finished.

    Attributes:
        seconds: time of each stage so far.
    """

    def __init__(self, progress: Callable[[str], None] | None) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Times what is done inside."""
        began = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - began
        if self._progress is not None:
            self._progress(f"{stage} {self.seconds[stage]:.1f} s")

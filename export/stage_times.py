"""Measures the stages of an export."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from hybrid_deploy.progress import Progress, silent


class StageTimes:
    """Measures the time of each stage, and reports when it begins and ends.

    Attributes:
        progress: called when a stage begins and ends; the work inside a stage may call it too.
        seconds: duration of each finished stage in seconds, by the stage's name.
    """

    def __init__(self, progress: Progress = silent) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str, parts: int = 1) -> Iterator[None]:
        """Measures the block as one stage, and reports it as `parts` parts."""
        began = time.perf_counter()
        self.progress(stage, 0, parts)
        yield
        self.seconds[stage] = time.perf_counter() - began
        self.progress(stage, parts, parts)

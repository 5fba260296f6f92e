"""The stages of an export, with their times."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from hybrid_deploy.progress import Progress, silent


class StageTimes:
    """Times the stages, and reports when each begins and ends.

    Attributes:
        progress: called at both ends of a stage; the work inside may call it in between.
        seconds: time of each finished stage.
    """

    def __init__(self, progress: Progress = silent) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str, parts: int = 1) -> Iterator[None]:
        """Times the block as one stage of `parts` parts."""
        began = time.perf_counter()
        self.progress(stage, 0, parts)
        yield
        self.seconds[stage] = time.perf_counter() - began
        self.progress(stage, parts, parts)

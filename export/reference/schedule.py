"""The schedule of a training run: learning rate and length of the lines."""

from __future__ import annotations

import math
import time

from hybrid_deploy.export.reference.lines import LONGEST_LINE

PEAK_LEARNING_RATE = 2e-3
WARM_UP = 0.08
FULL_LENGTH_FROM = 0.3
"""Shares of the training: end of the warm-up, and first lines of full length."""


class Schedule:
    """Counts the steps of a training run, and sets learning rate and line length from them.

    Args:
        steps: number of optimizer steps.
        seconds_limit: longest training time in seconds, None for no limit. With a limit, the
            schedule follows the steps or the time, whichever is further.
    """

    def __init__(self, steps: int, seconds_limit: float | None) -> None:
        self._steps = steps
        self._step = 0
        self._seconds_limit = seconds_limit or math.inf
        self._started = time.monotonic()

    @property
    def done(self) -> float:
        """The finished share of the training, 0 to 1."""
        elapsed = time.monotonic() - self._started
        return min(1.0, max(self._step / self._steps, elapsed / self._seconds_limit))

    @property
    def learning_rate(self) -> float:
        """The learning rate: a linear warm-up, then half a cosine down to zero."""
        if self.done < WARM_UP:
            return PEAK_LEARNING_RATE * (0.02 + 0.98 * self.done / WARM_UP)
        cooled = (self.done - WARM_UP) / (1 - WARM_UP)
        return PEAK_LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * cooled))

    @property
    def longest_line(self) -> int:
        """The largest number of digits in a line, which grows from 3 to the full length."""
        grown = round(3 + (LONGEST_LINE - 3) * self.done / FULL_LENGTH_FROM)
        return min(LONGEST_LINE, grown)

    def advance(self) -> None:
        """Counts one finished step."""
        self._step += 1

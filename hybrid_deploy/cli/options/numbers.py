"""Types of options that are numbers."""

from __future__ import annotations

import math
from typing import Any

import click

LONGEST_S = 1_000_000
"""Longest time that a command may give another process, 12 days; the system takes 24 days."""


class FiniteRange(click.FloatRange):
    """A range of numbers without `nan`, which every comparison of a range lets pass, and `inf`."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Returns the number.

        Raises:
            click.BadParameter: it is no finite number in the range.
        """
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number

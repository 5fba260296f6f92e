"""Telling how far the work is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told the stage, how much of it is done, and how much there is."""


def silent(stage: str, done: int, total: int) -> None:
    """Drops progress that nobody asked for."""

"""How far a piece of work is: the one way in which every part of the toolkit reports it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A function that is called while a piece of work goes on."""

    def __call__(self, stage: str, done: int, total: int, /) -> None:
        """Takes in how far one stage is.

        Args:
            stage: name of the stage, such as `calibrate`.
            done: number of finished parts: 0 when the stage begins, `total` when it ends.
            total: number of parts.
        """


def silent(stage: str, done: int, total: int, /) -> None:
    """Ignores the progress: the default where a caller wants none."""


def part_of(progress: Progress, stage: str, before: int, total: int) -> Progress:
    """Returns the progress of one piece of a larger stage.

    Args:
        progress: called for the whole stage.
        stage: name of the whole stage.
        before: number of its parts that are finished before this piece begins.
        total: number of its parts.
    """

    def report(piece: str, done: int, of: int, /) -> None:
        progress(stage, before + done, total)

    return report

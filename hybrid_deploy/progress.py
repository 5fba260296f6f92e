"""The only way in which parts of the toolkit report the progress of their work."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A function that long work calls to report how many parts of a stage are finished."""

    def __call__(self, stage: str, done: int, total: int, /) -> None:
        """Reports the progress of one stage.

        Args:
            stage: name of the stage, such as `calibrate`.
            done: number of finished parts: 0 when the stage begins, `total` when it ends.
            total: number of parts.
        """


def silent(stage: str, done: int, total: int, /) -> None:
    """Ignores a report of progress; the default of functions that take a Progress."""


def part_of(progress: Progress, stage: str, before: int, total: int) -> Progress:
    """Returns a progress for one piece of a stage, which counts within the whole stage.

    Args:
        progress: called with the counts of the whole stage.
        stage: name of the whole stage.
        before: number of parts of the stage that are finished when the piece begins.
        total: number of parts of the stage.
    """

    def report(piece: str, done: int, of: int, /) -> None:
        progress(stage, before + done, total)

    return report

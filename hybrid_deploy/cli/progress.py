"""The progress of a command on stderr: bars, and a line with the time of each finished stage.

The bars and lines are a `hybrid_deploy.progress.Progress`, which a library function calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from hybrid_deploy.cli.output import log
from hybrid_deploy.printable import printable

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

    from hybrid_deploy.progress import Progress


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Progress]:
    """Shows one bar with the elapsed time; yields the progress that moves it for any stage."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(printable(title), total=total)

        def show(stage: str, done: int, total: int, /) -> None:
            bars.update(task, completed=done)

        yield show


@contextmanager
def stage_bars() -> Iterator[Progress]:
    """Shows a bar for every stage if stderr is a terminal; yields the progress that moves them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int, /) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(printable(stage), total=total)
            bars.update(tasks[stage], completed=done)

        yield show


class StageLines:
    """A progress that prints the time of every stage when the stage ends.

    Args:
        bar: progress that is called for one of the stages.
        bar_stage: name of that stage.
    """

    def __init__(self, bar: Progress, bar_stage: str) -> None:
        self._bar = bar
        self._bar_stage = bar_stage
        self._started_at: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int, /) -> None:
        """Reports the progress of one stage."""
        if stage == self._bar_stage:
            self._bar(stage, done, total)
        if done == 0:
            self._started_at[stage] = perf_counter()
        elif done == total and stage in self._started_at:
            log(f"{stage} {perf_counter() - self._started_at.pop(stage):.1f} s")


class _Ticking:
    """The line of a running build, rendered with the elapsed time."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._started = perf_counter()

    def __rich__(self) -> Text:
        from rich.text import Text

        return Text(f"{printable(self._message)} ... {perf_counter() - self._started:.0f} s")


class BuildProgress:
    """Prints the stages of builds, one line each; on a terminal the current one counts seconds."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(
            stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self._live: Live | None = None
        self._stage: str | None = None

    def __call__(self, stage: str, done: int, total: int, /) -> None:
        """Prints the name of a stage that begins; a second call for it stops its seconds."""
        from rich.live import Live

        if stage == self._stage:
            self._stop()
            return
        self._stop()
        self._stage = stage
        if self._console.is_terminal and done < total:
            ticking = _Ticking(stage)
            self._live = Live(ticking, console=self._console, refresh_per_second=2)
            self._live.start()
        else:
            self._console.print(printable(stage))

    @contextmanager
    def engine(self) -> Iterator[None]:
        """Stops the seconds of the last stage when the block ends, even by an error."""
        try:
            yield
        finally:
            self._stop()

    def _stop(self) -> None:
        self._stage = None
        if self._live is not None:
            self._live.stop()
            self._live = None

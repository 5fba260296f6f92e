"""What `build` says on stderr: one line per engine, with the time that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from rich.console import Console
from rich.live import Live
from rich.text import Text


class _Ticking:
    """The line of a build that goes on, rendered with its time so far."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._started = perf_counter()

    def __rich__(self) -> Text:
        return Text(f"{self._message} ... {perf_counter() - self._started:.0f} s")


class BuildProgress:
    """Shows the messages of one build; on a terminal the last one counts the seconds."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._live: Live | None = None

    def say(self, message: str) -> None:
        """Shows a message."""
        self._stop()
        if self._console.is_terminal:
            ticking = _Ticking(message)
            self._live = Live(ticking, console=self._console, refresh_per_second=2)
            self._live.start()
        else:
            self._console.print(message)

    @contextmanager
    def engine(self) -> Iterator[None]:
        """Ends the counting of the last message, however the block ends."""
        try:
            yield
        finally:
            self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

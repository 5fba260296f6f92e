"""Ctrl-C: exit code 130 at any moment, also while libraries are imported.

Before a command begins there is nothing to clean up, and the process ends at once. Afterwards a
KeyboardInterrupt is raised. A library that is being imported may turn that into another error, so
`received` tells it from a failure.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""Exit code of a command that the user interrupted."""

_received = False


def end_at_once() -> None:
    """Lets Ctrl-C end this process in silence, unless it ignores Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextmanager
def raised() -> Iterator[None]:
    """Raises a KeyboardInterrupt for Ctrl-C inside the block, after `end_at_once`."""
    if signal.getsignal(signal.SIGINT) is not _end:
        yield
        return
    signal.signal(signal.SIGINT, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _end)


def received() -> bool:
    """Returns whether Ctrl-C has come since the command began."""
    return _received


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def _raise(number: int, frame: FrameType | None) -> None:
    global _received
    _received = True
    raise KeyboardInterrupt

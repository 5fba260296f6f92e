"""Ctrl-C: exit code 130 at any moment, also while libraries are imported or compute.

Before a command begins there is nothing to clean up, and the process ends at once. Afterwards a
KeyboardInterrupt is raised. A library that is being imported may turn that into another error, so
`received` tells it from a failure. While a library computes, Python raises nothing: a thread that
the system wakes ends the process then.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""Exit code of a command that the user interrupted."""

MESSAGE = "interrupted, nothing was half-written"
"""What a command says that the user interrupted."""

PATIENCE_S = 3.0
"""Time in seconds that a library may compute on before the process ends in the midst of it."""

_received = threading.Event()


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
        with _watched():
            yield
    finally:
        signal.signal(signal.SIGINT, _end)


def received() -> bool:
    """Returns whether Ctrl-C has come since the command began."""
    return _received.is_set()


@contextmanager
def _watched() -> Iterator[None]:
    """Ends the process where Ctrl-C reaches no Python code, as inside of a library."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(woken,), name="Ctrl-C", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(wake)  # the thread reads the end of the pipe
        watcher.join()
        os.close(woken)


def _watch(woken: int) -> None:
    while signals := os.read(woken, 64):
        if signal.SIGINT in signals and not _received.wait(PATIENCE_S):
            os.write(2, f"error: {MESSAGE}\n".encode())
            os._exit(INTERRUPTED)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def _raise(number: int, frame: FrameType | None) -> None:
    _received.set()
    raise KeyboardInterrupt

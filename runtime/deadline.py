"""The time at which a library's call must end, so that a timeout also holds inside of libraries.

The generation sets it around every call of a decoding, the session around the tokenizer's calls. A
backend whose library can end a run reads it with `deadline`, and ends the run with `stopping_at`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass

from hybrid_deploy.errors import BackendError

_POLL_S = 0.05
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


class StoppedError(BackendError):
    """A graph or a tokenizer was not done at its deadline; the generation answers for a graph."""


class Until:
    """Sets the deadline of the calls in its block.

    Args:
        deadline: value of `time.perf_counter` in seconds; None sets none.
    """

    def __init__(self, deadline: float | None) -> None:
        self._set_to = deadline
        self._token: Token[float | None] | None = None

    def __enter__(self) -> None:
        """Sets the deadline."""
        if self._set_to is not None:
            self._token = _deadline.set(self._set_to)

    def __exit__(self, *_: object) -> None:
        """Sets the deadline from before the block."""
        if self._token is not None:
            _deadline.reset(self._token)
            self._token = None


def deadline() -> float | None:
    """Returns the deadline of this call, a value of `time.perf_counter`; None if it has none."""
    return _deadline.get()


@contextmanager
def stopping_at(end: float, stop: Callable[[], None]) -> Iterator[None]:
    """Calls `stop` in another thread if the block still runs at the deadline.

    Args:
        end: the deadline.
        stop: ends the library's run, which may fail then.

    Raises:
        StoppedError: the run failed after `stop` was called.
    """
    run = _Run(end, stop)
    _watchdog.watch(run)
    try:
        yield
    except Exception as error:
        if run.is_stopped:
            raise StoppedError("a graph was ended when its time was over") from error
        raise
    finally:
        _watchdog.forget(run)


@dataclass(eq=False)
class _Run:
    """A run of a graph, and whether its deadline has passed."""

    end: float
    stop: Callable[[], None]
    is_stopped: bool = False


class _Watchdog:
    """A thread that looks for runs whose deadline has passed; it ends when there are no runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: set[_Run] = set()
        self._is_watching = False

    def watch(self, run: _Run) -> None:
        with self._lock:
            self._runs.add(run)
            if self._is_watching:
                return
            self._is_watching = True
        threading.Thread(target=self._stop_late_runs, name="deadlines", daemon=True).start()

    def forget(self, run: _Run) -> None:
        with self._lock:
            self._runs.discard(run)

    def _stop_late_runs(self) -> None:
        time.sleep(_POLL_S)
        while self._check():
            time.sleep(_POLL_S)

    def _check(self) -> bool:
        """Stops the runs that are late; returns whether there are others."""
        with self._lock:
            for run in [run for run in self._runs if time.perf_counter() >= run.end]:
                run.is_stopped = True
                run.stop()
                self._runs.discard(run)
            self._is_watching = bool(self._runs)
            return self._is_watching


_watchdog = _Watchdog()

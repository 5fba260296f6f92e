"""A child process that answers one question after another, and starts again where one ends it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_START_SECONDS = 120.0  # a new process may import PyTorch first


class NoAnswerError(Exception):
    """A question ended the process, or took too long; the message says which.

    Attributes:
        timed_out: whether it took too long.
    """

    def __init__(self, reason: str, *, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.timed_out = timed_out


class WorkerProcess(Generic[T]):
    """The process.

    Args:
        answer: function of a seed, which can be pickled.
        limit_s: time in seconds after which a question is given up.
    """

    def __init__(self, answer: Callable[[int], T], limit_s: float) -> None:
        self._answer = answer
        self._limit_s = limit_s
        self._start()

    def ask(self, seed: int) -> T:
        """Returns the answer for a seed.

        Raises:
            NoAnswerError: there is none; the process was started again.
        """
        self._pipe.send(seed)
        try:
            if self._pipe.poll(self._limit_s):
                answer: T = self._pipe.recv()
                return answer
            ended = NoAnswerError(f"more than {self._limit_s:g} s", timed_out=True)
        except (EOFError, OSError):
            self._process.join()
            ended = NoAnswerError(f"the process ended with code {self._process.exitcode}")
        self.stop()
        self._start()
        raise ended

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._answer), daemon=True)
        self._process.start()
        other.close()
        if not self._pipe.poll(_START_SECONDS) or self._pipe.recv() != "ready":
            raise RuntimeError("a worker process does not start")


def _serve(pipe: Connection, answer: Callable[[int], Any]) -> None:
    """Answers every seed that comes through a pipe."""
    pipe.send("ready")
    with suppress(EOFError):
        while True:
            pipe.send(answer(pipe.recv()))

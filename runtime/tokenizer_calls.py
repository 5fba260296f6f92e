"""Calls of the tokenizers library: a panic becomes an error, and a call may end at the deadline.

A panic is no `Exception` and prints lines of its own. A regular expression of a file can search
for hours, and nothing ends the library's search: it goes on in a thread that nobody waits for, and
that does not keep the process from its end.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from contextlib import contextmanager, nullcontext
from tempfile import TemporaryFile
from typing import TypeVar

from hybrid_deploy.errors import BundleError
from hybrid_deploy.runtime.deadline import StoppedError, deadline

_STDERR = 2
_SILENT_S = 1.0  # afterwards the lines that others print are worth more than those of no panic
_redirecting = threading.Lock()
_Result = TypeVar("_Result")


def without_panic(call: Callable[[], _Result], failure: str, *, silently: bool = True) -> _Result:
    """Returns what a call of the tokenizers library returns; its panic is an error.

    Args:
        call: the call.
        failure: begin of the message if it fails.
        silently: whether the lines that a panic prints are dropped, which takes 0.1 ms.

    Raises:
        BundleError: the library failed.
    """
    with _errors(failure), _kept_stderr() if silently else nullcontext():
        return call()


def in_time(
    call: Callable[[], _Result], failure: str, *, longest_s: float | None = None
) -> _Result:
    """Returns what a call returns that may search for hours; its panic is an error.

    Ctrl-C ends it too.

    Args:
        call: the call; the library must release Python's lock in it, as for batches.
        failure: begin of the message if it fails.
        longest_s: seconds after which it fails; None waits until the deadline, see `Until`.

    Raises:
        BundleError: the library failed, or took longer than `longest_s`.
        StoppedError: the call has not ended at the deadline.
    """
    answer: Future[_Result] = Future()
    end = deadline() if longest_s is None else time.perf_counter() + longest_s
    with _errors(failure):
        with _kept_stderr():
            threading.Thread(
                target=_answer, args=(answer, call), name="tokenizer", daemon=True
            ).start()
            try:
                return answer.result(_SILENT_S if end is None else min(_SILENT_S, _left_s(end)))
            except LateError:
                pass
        try:
            return answer.result(None if end is None else _left_s(end))
        except LateError:
            if longest_s is not None:
                raise TimeoutError(f"it takes over {longest_s:.0f} s for a text") from None
            raise StoppedError(
                "the bundle's tokenizer had not finished a text when its time was over; shorten "
                "the text or give more time"
            ) from None


def _left_s(end: float) -> float:
    return end - time.perf_counter()


def _answer(answer: Future[_Result], call: Callable[[], _Result]) -> None:
    try:
        answer.set_result(call())
    except BaseException as error:
        answer.set_exception(error)


@contextmanager
def _errors(failure: str) -> Iterator[None]:
    """Raises whatever the library raises in the block as a BundleError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, StoppedError):
        raise
    except (
        BaseException
    ) as error:  # tokenizers raises nothing more precise; a panic is no Exception
        raise BundleError(f"{failure}: {error}; export it again") from error


@contextmanager
def _kept_stderr() -> Iterator[None]:
    """Prints what is written to stderr in the block after it; drops it if the block fails."""
    with _redirecting, TemporaryFile() as printed:
        try:
            stderr = os.dup(_STDERR)
        except OSError:  # it is closed
            yield
            return
        try:
            os.dup2(printed.fileno(), _STDERR)
            try:
                yield
            finally:
                os.dup2(stderr, _STDERR)
            printed.seek(0)
            os.write(stderr, printed.read())
        finally:
            os.close(stderr)

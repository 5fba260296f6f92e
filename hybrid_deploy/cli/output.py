"""Everything that a command prints: its data on stdout, what it tells meanwhile on stderr.

All text passes `printable`, so that no bundle or file name commands the user's terminal.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from contextlib import suppress

import click

from hybrid_deploy.printable import LINES, one_line, printable


def say(text: str = "", *, nl: bool = True) -> None:
    """Prints data on stdout.

    Args:
        text: the data; it may have several lines.
        nl: whether a line break follows.

    Raises:
        OSError: stdout is closed, or its disk is full.
    """
    if sys.stdout is None:
        raise OSError(errno.EBADF, "stdout is closed, so the result is lost")
    click.echo(printable(text, LINES), nl=nl)


def say_of_finished_work(text: str) -> None:
    """Prints data on stdout, after work that stays done even if nobody can read the data.

    A text that cannot be printed goes to stderr in one line, and the exit code stays 0.
    """
    try:
        say(text)
    except OSError as error:
        log(f"{text} (stdout could not be written: {error.strerror})")
        _discard_output()


def _discard_output() -> None:
    """Lets the end of the process find no text that it cannot print, which would be a failure."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def log(message: str) -> None:
    """Prints one line on stderr, so that stdout holds the data alone.

    A line break within, as in the name of a file, is escaped: it cannot begin a line of its own.
    """
    log_lines(one_line(message))


def log_lines(text: str) -> None:
    """Prints a text of several lines, which is our own, on stderr."""
    with suppress(OSError):  # nobody reads it
        click.echo(printable(text, LINES), err=True)


class _LogHandler(logging.Handler):
    """Prints what the library reports while it works, such as that it waits for a lock."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one report on stderr."""
        log(record.getMessage())


def show_reports() -> None:
    """Prints the library's reports on stderr from now on, and no warnings of numpy.

    Whatever is not finite is refused with a line of its own; `python -W` shows the warnings again.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore", RuntimeWarning)
    logger = logging.getLogger("hybrid_deploy")
    logger.handlers = [_LogHandler()]
    logger.propagate = False

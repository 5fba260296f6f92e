"""The process that runs the command `hybrid-deploy`."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from contextlib import suppress
from typing import Any, TextIO

from hybrid_deploy.cli import interrupts

_STDERR_FILENO = 2
_TEMPORARY_VARIABLES = ("TMPDIR", "TEMP", "TMP")  # in the order of tempfile.gettempdir


def start() -> None:
    """Runs `main` as a process: the console script and `python -m hybrid_deploy`.

    PyTorch's tracer calls exec(). Once a KeyboardInterrupt has passed through exec(), CPython ends
    the process by the signal and ignores the exit code; `os._exit` keeps the exit code 130.
    """
    interrupts.end_at_once()
    from hybrid_deploy.cli.group import main

    _name_temporary_folder()
    _open_stderr()
    _print_any_character(sys.stdout)
    try:
        main()
    except SystemExit as exit_request:
        if exit_request.code == interrupts.INTERRUPTED:
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(interrupts.INTERRUPTED)
        raise


def _name_temporary_folder() -> None:
    """Names the folder that `tempfile` would take, without the file that it writes to try it.

    A kill would leave that file, whose name nobody knows for ours. Where the folder is not
    writable, `tempfile` finds another one.
    """
    named = (os.environ.get(variable) for variable in _TEMPORARY_VARIABLES)
    folder = os.path.abspath(next(filter(None, named), "/tmp"))
    if os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
        tempfile.tempdir = folder


class _Stderr(io.FileIO):
    """The descriptor of stderr, which takes whatever cannot be written: no report is lost by it."""

    def write(self, data: Any, /) -> int:
        """Returns the number of bytes that need not be written again."""
        try:
            return super().write(data) or len(data)
        except OSError:  # it is closed, only open for reading, its disk is full or nobody reads
            return len(data)


def _open_stderr() -> None:
    """Lets nothing fail that prints on stderr; opens it if it is closed.

    Libraries print there, and no other file may take its place.
    """
    encoding = "utf-8" if sys.stderr is None else sys.stderr.encoding
    if sys.stderr is None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != _STDERR_FILENO:
            os.dup2(nowhere, _STDERR_FILENO)
            os.close(nowhere)
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Stderr(_STDERR_FILENO, "w", closefd=False)),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=True,
    )


def _print_any_character(stream: TextIO | None) -> None:
    """Lets a stream print an escape for a character that its encoding lacks."""
    if stream is not None and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")

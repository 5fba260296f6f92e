"""The process that runs the command `hybrid-deploy`."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO

from hybrid_deploy.cli import interrupts

_STDERR_FILENO = 2


def start() -> None:
    """Runs `main` as a process: the console script and `python -m hybrid_deploy`.

    PyTorch's tracer calls exec(). Once a KeyboardInterrupt has passed through exec(), CPython ends
    the process by the signal and ignores the exit code; `os._exit` keeps the exit code 130.
    """
    interrupts.end_at_once()
    from hybrid_deploy.cli.group import main

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


def _open_stderr() -> None:
    """Opens stderr if it is closed: libraries print there, and no other file may take its place."""
    if sys.stderr is None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != _STDERR_FILENO:
            os.dup2(nowhere, _STDERR_FILENO)
            os.close(nowhere)
        sys.stderr = os.fdopen(_STDERR_FILENO, "w", errors="backslashreplace")


def _print_any_character(stream: TextIO | None) -> None:
    """Lets a stream print an escape for a character that its encoding lacks."""
    if stream is not None and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")

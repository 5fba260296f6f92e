"""Runs the tools of vendors; neither a crash nor a hang of a tool reaches this process."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TOOL_SECONDS = 10.0
"""Longest time that a vendor's tool may run, in seconds."""

_REAP_SECONDS = 1.0


@dataclass(frozen=True)
class ToolResult:
    """The result of a program that ended in time.

    Attributes:
        exit_code: exit status; the negative number of a signal that ended the program.
        output: text of its standard output.
        errors: text of its standard error.
    """

    exit_code: int
    output: str
    errors: str

    @property
    def last_line(self) -> str:
        """The last line of its standard error, else of its standard output, for a message."""
        lines = (self.errors.strip() or self.output.strip()).splitlines()
        return lines[-1].strip() if lines else "it gave no reason"


def run_tool(
    command: Sequence[str],
    seconds: float,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> ToolResult:
    """Runs a program within a time limit and returns its output.

    Files take the output in place of pipes, because a surviving grandchild would keep a pipe open.
    A program that the kernel cannot kill, such as one that waits for a broken driver, stays behind.

    Args:
        command: program and its arguments.
        seconds: time limit in seconds.
        folder: working folder of the program; None takes this process's.
        environment: environment variables of the program; None takes this process's.

    Raises:
        TimeoutError: the program did not end in time; it and its children are killed.
        OSError: the program could not be started.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            cwd=folder,
            env={**(os.environ if environment is None else environment), "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
        try:
            exit_code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            name = Path(command[0]).name
            raise TimeoutError(f"{name} gave no answer in {seconds:g} s") from None
        finally:
            _kill(process)
        output.seek(0)
        errors.seek(0)
        return ToolResult(
            exit_code,
            output.read().decode(errors="replace"),
            errors.read().decode(errors="replace"),
        )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a program that still runs, and all processes that it started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_REAP_SECONDS)

"""Programs of others, run so that neither a crash nor a hang reaches this process."""

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
"""How long a vendor's tool may take to answer."""

_REAP_SECONDS = 1.0


@dataclass(frozen=True)
class Finished:
    """A program that ended by itself; `code` is negative where a signal ended it."""

    code: int
    output: str
    errors: str

    @property
    def last_line(self) -> str:
        """The last line of what it said, for a message."""
        lines = (self.errors.strip() or self.output.strip()).splitlines()
        return lines[-1].strip() if lines else "it gave no reason"


def run_tool(
    command: Sequence[str],
    seconds: float,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Runs a program with an end to its time.

    Output goes through files and not pipes: a grandchild that survives would keep a pipe open. A
    program that the kernel cannot end, as behind a broken driver, is left behind.

    Raises:
        TimeoutError: it did not end in time; it and its children are killed.
        OSError: it could not be started.
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
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            name = Path(command[0]).name
            raise TimeoutError(f"{name} gave no answer in {seconds:g} s") from None
        finally:
            _end(process)
        output.seek(0)
        errors.seek(0)
        return Finished(
            code, output.read().decode(errors="replace"), errors.read().decode(errors="replace")
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills a program that still runs, with all that it started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_REAP_SECONDS)

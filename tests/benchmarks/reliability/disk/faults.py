"""Runs a command that is killed, or finds the disk full, at one of its calls to the file system.

`faults.c` is preloaded into the command and its child processes, and counts the calls that change a
folder: so a command can be struck at every one of them, in the same order in every run.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_SOURCE = Path(__file__).with_name("faults.c")
_COUNTER = struct.Struct("q")
_LIMIT_SECONDS = 300.0  # a command that takes longer hangs

Kind = Literal["kill", "full"]


class NoCompilerError(Exception):
    """There is no C compiler, so nothing can be preloaded."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code; negative for the signal that ended it.
        stdout: what it printed.
        stderr: what it logged.
        calls: number of its calls that were counted.
        seconds: time that it took, in seconds.
    """

    code: int
    stdout: str
    stderr: str
    calls: int
    seconds: float

    @property
    def was_killed(self) -> bool:
        """Whether the process was killed before its end."""
        return self.code == -signal.SIGKILL


@dataclass(frozen=True)
class Striker:
    """Runs commands in a folder, whose changes are counted.

    Attributes:
        library: the compiled `faults.c`.
        folder: folder that the commands run in and change.
        environment: environment of the commands.
    """

    library: Path
    folder: Path
    environment: Mapping[str, str]

    def run(self, command: Sequence[str], kind: Kind = "kill", at: int = 0) -> Ended:
        """Runs a command.

        Args:
            command: the program and its arguments.
            kind: what happens: `kill` or `full`.
            at: number of the call at which it happens; 0 lets the command run to its end.

        Raises:
            subprocess.TimeoutExpired: the command hangs; it was killed.
        """
        return self._run(command, kind, at, None)

    def kill_after(self, command: Sequence[str], seconds: float) -> Ended:
        """Runs a command and kills it after a time, unless it has ended."""
        return self._run(command, "kill", 0, seconds)

    def _run(self, command: Sequence[str], kind: Kind, at: int, seconds: float | None) -> Ended:
        counter = self.library.with_suffix(".count")
        counter.write_bytes(_COUNTER.pack(0))
        variables = {
            "LD_PRELOAD": str(self.library),
            "FAULTS_FOLDER": str(self.folder),
            "FAULTS_COUNTER": str(counter),
            "FAULTS_AT": str(at),
            "FAULTS_KIND": kind,
        }
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=dict(self.environment) | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        stdout, stderr = _output(process, seconds)
        taken = time.perf_counter() - began
        (calls,) = _COUNTER.unpack(counter.read_bytes())
        return Ended(process.returncode, stdout, stderr, calls, taken)


def compile_library(folder: Path) -> Path:
    """Compiles `faults.c` into a folder and returns the library.

    Raises:
        NoCompilerError: there is no C compiler.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoCompilerError("install a C compiler (cc): it compiles what is preloaded")
    library = folder / "faults.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def _output(process: subprocess.Popen[str], seconds: float | None) -> tuple[str, str]:
    """Returns what a process prints; its whole group is killed after a time."""
    try:
        return process.communicate(timeout=_LIMIT_SECONDS if seconds is None else seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()
        if seconds is None:
            raise
        return output

"""Starts a contender's process and talks to it; `worker.py` is the other end."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.cpu.contender import Job

ROOT = Path(__file__).parents[3]
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_QUIT_S = 60.0


class ChildError(Exception):
    """A contender's process failed; the message has the reason from its log."""


def environment_of(job: Job) -> dict[str, str]:
    """Returns the environment variables of a contender's process."""
    fixed = {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(Path(job.work) / "inductor"),
    }
    return os.environ | fixed | dict.fromkeys(_THREAD_VARIABLES, str(job.threads))


def command_of(python: Path, verb: str, module: str, job: Job) -> list[str]:
    """Returns the command line of a contender's process.

    Args:
        python: interpreter of the contender's environment.
        verb: `prepare` or `serve`.
        module: name of the contender's module in `contenders`.
        job: the contender's work.
    """
    return [str(python), "-m", "tests.benchmarks.cpu.worker", verb, module, job.to_json()]


def run_to_end(command: list[str], job: Job, log: Path, timeout_s: float) -> str:
    """Runs a process to its end and returns its standard output.

    Args:
        command: command line.
        job: work that sets the environment variables.
        log: file for the standard error.
        timeout_s: seconds after which the process is killed.

    Raises:
        ChildError: the process failed or took too long.
    """
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                command, env=environment_of(job), stdout=subprocess.PIPE, stderr=file,
                stdin=subprocess.DEVNULL, text=True, timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ChildError(f"took longer than {timeout_s:.0f} s") from None
    if done.returncode != 0:
        raise ChildError(_failure_text(log, done.returncode))
    return done.stdout


class Child:
    """A contender's running process, which generates when it is asked for a turn."""

    def __init__(self, command: list[str], job: Job, log: Path) -> None:
        self._log = log
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                command, env=environment_of(job), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, text=True,
            )  # fmt: skip

    def answer(self, timeout_s: float) -> Mapping[str, Any]:
        """Reads the next answer of the process and returns it.

        Raises:
            ChildError: no answer came within `timeout_s`, or the answer is an error.
        """
        assert self._process.stdout is not None
        killer = threading.Timer(timeout_s, self._process.kill)
        killer.start()
        line = self._process.stdout.readline()
        in_time = killer.is_alive()
        killer.cancel()
        if not line:
            code = self._process.wait()
            timeout = f"took longer than {timeout_s:.0f} s"
            raise ChildError(_failure_text(self._log, code) if in_time else timeout)
        record: dict[str, Any] = json.loads(line)
        if "error" in record:
            raise ChildError(record["error"])
        return record

    def turn(self, count: int, timeout_s: float) -> Mapping[str, Any]:
        """Asks the contender for one turn of `count` new tokens and returns its answer.

        Raises:
            ChildError: no answer came within `timeout_s`, or the answer is an error.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"turn {count}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ChildError(_failure_text(self._log, self._process.wait())) from None
        return self.answer(timeout_s)

    def finish(self) -> Mapping[str, Any]:
        """Closes the input of the process, which ends it, and returns the last answer.

        Raises:
            ChildError: the process does not answer in time.
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return self.answer(_QUIT_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """Kills the process and closes its pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _failure_text(log: Path, code: int) -> str:
    """Returns the exit status and the log's last unindented line, which has the error."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    messages = [line for line in lines if line and not line[0].isspace()]
    return f"ended with status {code}: {messages[-1] if messages else 'it gave no reason'}"

"""Ctrl-C: exit code 130, one line on stderr, no partial output."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from hybrid_deploy.cache_dir import CACHE_VARIABLE
from tests.fakes.endless_graph import make_endless
from tests.fakes.slow_tokenizer import make_slow

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0
WITH_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # background processes ignore SIGINT
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def interrupt(ready: Callable[[], bool], *args: object) -> tuple[int, list[str]]:
    """Returns exit code and lines on stderr of a command that gets SIGINT once `ready` holds."""
    command = [sys.executable, "-c", WITH_CTRL_C, "-m", "hybrid_deploy", *map(str, args)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            started_at = time.monotonic()
            while not ready():
                assert process.poll() is None, "the command ended by itself"
                assert time.monotonic() - started_at < TIMEOUT_S
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    return process.returncode, stderr.strip().splitlines()


def test_export(tmp_path: Path) -> None:
    def staged() -> bool:
        return any(tmp_path.glob(".out.bundle.*"))

    code, lines = interrupt(staged, "export", "tests.conftest:job", "-o", tmp_path / "out.bundle")
    assert (code, lines[-1]) == (130, "error: interrupted, nothing was half-written")
    assert list(tmp_path.iterdir()) == []


def test_profile(tiny_path: Path, page: Path) -> None:
    started_at = time.monotonic()

    def running() -> bool:
        return time.monotonic() - started_at > 3

    code, lines = interrupt(running, "profile", tiny_path, page, "--runs", 10_000_000)
    assert (code, lines[-1]) == (130, "error: interrupted, nothing was half-written")
    assert "Traceback" not in "\n".join(lines)


def processes_in(folder: Path) -> list[int]:
    """Returns the ids of processes whose working directory is in a folder, even a deleted one."""
    processes = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if str(link.readlink()).startswith(str(folder)):
                processes.append(int(link.parent.name))
    return processes


@pytest.mark.trt
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)
def test_build(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))

    def compiling() -> bool:
        return bool(processes_in(temporary))

    try:
        code, lines = interrupt(compiling, "build", tiny_path, "--target", "rtx:sm_86")
        assert (code, lines[-1]) == (130, "error: interrupted, nothing was half-written")
        assert "Traceback" not in "\n".join(lines)
        started_at = time.monotonic()
        while processes_in(temporary) and time.monotonic() - started_at < TIMEOUT_S:
            time.sleep(0.05)  # the kernel ends the child a moment after its parent
        assert processes_in(temporary) == []
    finally:
        for process in processes_in(temporary):
            os.kill(process, signal.SIGKILL)
    assert list(temporary.iterdir()) == []
    (lock,) = (tmp_path / "cache" / "engines").iterdir()
    with FileLock(lock, timeout=0):
        pass


def test_an_endless_graph(own_path: Path, page: Path) -> None:
    make_endless(own_path, "encoder")
    started_at = time.monotonic()

    def computing() -> bool:
        return time.monotonic() - started_at > 3

    code, lines = interrupt(computing, "run", own_path, page)
    assert (code, lines[-1]) == (130, "error: interrupted, nothing was half-written")


def test_a_slow_tokenizer(own_path: Path, page: Path) -> None:
    make_slow(own_path)
    started_at = time.monotonic()

    def splitting() -> bool:
        return time.monotonic() - started_at > 4

    words = ("--prompt-text", "a" * 100_000)
    code, lines = interrupt(splitting, "run", own_path, page, *words)
    assert (code, lines[-1]) == (130, "error: interrupted, nothing was half-written")


def test_a_timeout_ends_a_slow_tokenizer(own_path: Path, page: Path) -> None:
    make_slow(own_path)
    words = ("--prompt-text", "a" * 100_000, "--timeout", "0.5")
    command = [sys.executable, "-m", "hybrid_deploy", "run", str(own_path), str(page), *words]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "the bundle's tokenizer had not finished a text when its time was over" in line

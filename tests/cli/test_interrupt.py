"""Ctrl-C: exit code 130, one line, nothing half-written."""

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

TESTS = Path(__file__).parents[1]
PATIENCE_S = 60.0
HEEDS_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # what runs in the background is started without
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def interrupt(ready: Callable[[], bool], *args: object) -> tuple[int, list[str]]:
    """Starts a command, presses Ctrl-C once it is `ready`; gives exit code and last line."""
    command = [sys.executable, "-c", HEEDS_CTRL_C, "-m", "hybrid_deploy", *map(str, args)]
    with subprocess.Popen(command, cwd=TESTS, stderr=subprocess.PIPE, text=True) as process:
        try:
            waited = time.monotonic()
            while not ready():
                assert process.poll() is None, "the command ended by itself"
                assert time.monotonic() - waited < PATIENCE_S
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    return process.returncode, stderr.strip().splitlines()


def test_export(tmp_path: Path) -> None:
    def staged() -> bool:
        return any(tmp_path.glob(".out.bundle.*"))

    code, lines = interrupt(staged, "export", "conftest:job", "-o", tmp_path / "out.bundle")
    assert (code, lines[-1]) == (130, "error: interrupted, nothing was half-written")
    assert list(tmp_path.iterdir()) == []


def test_profile(tiny_path: Path, page: Path) -> None:
    began = time.monotonic()

    def running() -> bool:
        return time.monotonic() - began > 3

    code, lines = interrupt(running, "profile", tiny_path, page, "--runs", 10_000_000)
    assert (code, lines[-1]) == (130, "error: interrupted, nothing was half-written")
    assert "Traceback" not in "\n".join(lines)


def in_folder(folder: Path) -> list[int]:
    """Returns the processes that work in a folder or below it, also once it is deleted."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if str(link.readlink()).startswith(str(folder)):
                found.append(int(link.parent.name))
    return found


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
        return bool(in_folder(temporary))

    try:
        code, lines = interrupt(compiling, "build", tiny_path, "--target", "rtx:sm_86")
        assert (code, lines[-1]) == (130, "error: interrupted, nothing was half-written")
        assert "Traceback" not in "\n".join(lines)
        waited = time.monotonic()
        while in_folder(temporary) and time.monotonic() - waited < PATIENCE_S:
            time.sleep(0.05)  # the kernel ends it with its parent, a moment later
        assert in_folder(temporary) == []
    finally:
        for process in in_folder(temporary):
            os.kill(process, signal.SIGKILL)
    assert list(temporary.iterdir()) == []
    (lock,) = (tmp_path / "cache" / "engines").iterdir()
    with FileLock(lock, timeout=0):
        pass

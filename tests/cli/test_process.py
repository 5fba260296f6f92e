"""Real processes of the command line: closed streams, Ctrl-C while it starts, orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from hybrid_deploy.cli import entry_point, interrupts
from hybrid_deploy.telemetry import SWITCHES
from tests.cli.test_interrupt import ROOT, TIMEOUT_S, WITH_CTRL_C

COMMAND = [sys.executable, "-m", "hybrid_deploy"]


def shell(line: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash, in which `$0` is the command and `$1` its first argument."""
    words = " ".join(f"'{word}'" for word in COMMAND)
    return subprocess.run(
        ["bash", "-c", line.replace("hybrid-deploy", words), "bash", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.mark.parametrize(
    ("redirection", "words"),
    [
        (">&-", "stdout is closed, so the result is lost"),
        ("> /dev/full", "the disk is full"),
    ],
)
def test_a_lost_result_is_a_failure(redirection: str, words: str, tiny_path: Path) -> None:
    done = shell(f"hybrid-deploy inspect $1 {redirection}", tiny_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert words in line


@pytest.mark.parametrize("option", ["--help", "--version", "run --help"])
def test_lost_help_is_a_failure(option: str) -> None:
    done = shell(f"hybrid-deploy {option} > /dev/full")
    assert (done.returncode, done.stderr.strip()) == (
        1,
        "error: the disk is full; free some space and run the command again",
    )


def test_a_reader_that_has_gone_is_a_failure_in_silence(tiny_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, "inspect", str(tiny_path)],
        cwd=ROOT,
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_closed_stderr_loses_no_result(tiny_path: Path, page: Path) -> None:
    done = shell("hybrid-deploy run $1 $2 2>&-", tiny_path, page)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)


@pytest.mark.parametrize("redirection", ["2>&-", "2< /dev/null", "2> /dev/full"])
@pytest.mark.parametrize("command", ["doctor", "verify $1", "profile $1 $2 --runs 2"])
def test_a_stderr_that_takes_nothing_loses_no_report(
    command: str, redirection: str, tiny_path: Path, page: Path
) -> None:
    done = shell(f"hybrid-deploy {command} {redirection}", tiny_path, page)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_name_that_is_no_utf8(tiny_path: Path, tmp_path: Path, page: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(name)).write_bytes(page.read_bytes())
    for options in ([], ["--format", "json"]):
        done = subprocess.run(
            [*COMMAND, "run", str(tiny_path), name, *options],
            cwd=ROOT,
            capture_output=True,
            check=False,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
        )
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("delay_s", [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6])
def test_ctrl_c_while_it_starts(delay_s: float, tiny_path: Path, page: Path) -> None:
    """Python itself answers Ctrl-C until our first line runs: the clock begins there."""
    first_line = (
        "import runpy, sys, hybrid_deploy; print('ready', file=sys.stderr, flush=True); "
        "runpy.run_module('hybrid_deploy', run_name='__main__')"
    )
    command = [sys.executable, "-c", WITH_CTRL_C, "-c", first_line]
    arguments = ["profile", str(tiny_path), str(page), "--runs", "10000000"]
    with subprocess.Popen(
        [*command, *arguments], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "ready\n"
            time.sleep(delay_s)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert (process.returncode, out) == (130, "")
    lines = [line for line in err.splitlines() if "%" not in line and "profile" not in line]
    assert "Traceback" not in err
    assert [line for line in lines if line.strip() and not line.startswith("fp32 on")] in (
        [],
        ["error: interrupted, nothing was half-written"],
    )


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    child = (
        "import time, pathlib, os; from hybrid_deploy.runtime.host import own_process; "
        "own_process.end_with_parent(); "
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys; from hybrid_deploy.runtime.host import own_process; "
        f"subprocess.run([sys.executable, '-c', {child!r}], env=own_process.environment())"
    )
    with subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    pid = int((tmp_path / "pid").read_text())
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Returns whether a process runs; one that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_an_orphan_of_a_dead_parent_ends_at_once() -> None:
    code = "from hybrid_deploy.runtime.host import own_process; own_process.end_with_parent()"
    alone = os.environ | {"HYBRID_DEPLOY_PARENT": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=alone, check=False)
    assert done.returncode == 1


def test_onnx_runtime_prints_nothing_of_its_own(tiny_path: Path, tmp_path: Path) -> None:
    """A kernel that fails at run time is one line of ours, and no line of ONNX Runtime."""
    code = f"""
import shutil, numpy as np, onnx
from pathlib import Path
from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.onnxruntime.inference_session import make_session
graph = onnx.parser.parse_model('''<ir_version: 10, opset_import: ["" : 18]>
    g (int64[n] x, float[m] y) => (float[k] z) {{ z = Reshape(y, x) }}''')
onnx.save(graph, {str(tmp_path / "g.onnx")!r})
session = make_session(Path({str(tmp_path / "g.onnx")!r}), 1)
try:
    session.run(None, {{"x": np.array([7]), "y": np.zeros(3, np.float32)}})
except Exception as error:
    assert "Reshape" in str(error)
else:
    raise SystemExit("no error")
"""
    environment = {k: v for k, v in os.environ.items() if k not in SWITCHES}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("variable", ["TMPDIR", "TEMP"])
def test_the_temporary_folder_is_not_tried_with_a_file(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr("hybrid_deploy.cli.group.main", lambda: None)
    monkeypatch.setattr(interrupts, "end_at_once", lambda: None)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    changed = tmp_path.stat().st_mtime_ns
    entry_point.start()
    assert tempfile.gettempdir() == str(tmp_path)
    assert tmp_path.stat().st_mtime_ns == changed

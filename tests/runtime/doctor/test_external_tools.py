import os
import sys
import time
from pathlib import Path

import pytest

from hybrid_deploy.runtime.doctor.external_tools import run_tool


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_output_and_code() -> None:
    done = run_tool(["sh", "-c", "echo seen; echo why >&2; exit 3"], 10)
    assert (done.code, done.output, done.errors, done.last_line) == (3, "seen\n", "why\n", "why")


def test_a_hanging_tool_is_ended_with_its_children(tmp_path: Path) -> None:
    tool, child = tmp_path / "nvidia-smi", tmp_path / "child"
    tool.write_text(
        f"#!/bin/sh\nsleep 600 &\necho $! > {child}.part\nmv {child}.part {child}\nwait\n"
    )
    tool.chmod(0o755)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^nvidia-smi gave no answer in 1 s$"):
        run_tool([str(tool)], 1)
    assert time.monotonic() - started < 10
    process = int(child.read_text())
    until = time.monotonic() + 5
    while is_running(process) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(process)


def test_a_crash_is_a_negative_code() -> None:
    done = run_tool([sys.executable, "-c", "import os; os.abort()"], 30)
    assert done.code == -6
    assert run_tool(["true"], 10, environment=os.environ).last_line == "it gave no reason"

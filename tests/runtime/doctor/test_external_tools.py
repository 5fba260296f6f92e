import os
import sys
import time
from pathlib import Path

import pytest

from hybrid_deploy.runtime.doctor.external_tools import run_tool


def is_running(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_output_and_exit_code() -> None:
    result = run_tool(["sh", "-c", "echo seen; echo why >&2; exit 3"], 10)
    assert (result.exit_code, result.output, result.errors) == (3, "seen\n", "why\n")
    assert result.last_line == "why"


def test_a_hanging_tool_is_killed_with_its_children(tmp_path: Path) -> None:
    tool, child = tmp_path / "nvidia-smi", tmp_path / "child"
    tool.write_text(
        f"#!/bin/sh\nsleep 600 &\necho $! > {child}.part\nmv {child}.part {child}\nwait\n"
    )
    tool.chmod(0o755)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^nvidia-smi gave no answer in 1 s$"):
        run_tool([str(tool)], 1)
    assert time.monotonic() - started < 10
    process_id = int(child.read_text())
    deadline = time.monotonic() + 5
    while is_running(process_id) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(process_id)


def test_a_crash_is_a_negative_exit_code() -> None:
    result = run_tool([sys.executable, "-c", "import os; os.abort()"], 30)
    assert result.exit_code == -6


def test_the_last_line_of_a_silent_tool() -> None:
    assert run_tool(["true"], 10, environment=os.environ).last_line == "it gave no reason"

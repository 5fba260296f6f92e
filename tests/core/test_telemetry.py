"""No process of the toolkit lets ONNX Runtime report home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid_deploy.telemetry import SWITCHES

LOAD = "import onnxruntime; onnxruntime.InferenceSession({!r}, providers=['CPUExecutionProvider'])"


def files_after_loading(home: Path, first: str, tiny_path: Path) -> list[str]:
    """Returns the files that a process writes into its home when it loads a graph.

    Args:
        home: empty folder.
        first: statement that the process runs before.
        tiny_path: path of a bundle.
    """
    environment = {k: v for k, v in os.environ.items() if k not in SWITCHES}
    environment.pop("CI", None)  # ONNX Runtime reports nothing from the CI services that it knows
    load = LOAD.format(str(tiny_path / "fp32" / "step.onnx"))
    subprocess.run(
        [sys.executable, "-c", f"{first}\n{load}"],
        env=environment | {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")},
        check=True,
        timeout=120,
    )
    return [path.name for path in home.rglob("*") if path.is_file()]


def test_onnx_runtime_writes_nothing_after_the_package_is_imported(
    tmp_path: Path, tiny_path: Path
) -> None:
    assert files_after_loading(tmp_path, "import hybrid_deploy", tiny_path) == []


def test_onnx_runtime_alone_would_write_its_device_id(tmp_path: Path, tiny_path: Path) -> None:
    if "deviceid" not in files_after_loading(tmp_path, "", tiny_path):
        pytest.skip("this build of ONNX Runtime has no telemetry")

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid_deploy.runtime.doctor import (
    external_tools as doctor_tools,
)
from hybrid_deploy.runtime.doctor import (
    host as doctor_host,
)
from hybrid_deploy.runtime.doctor import (
    report as doctor,
)
from hybrid_deploy.runtime.doctor.check import Check, Verdict
from hybrid_deploy.runtime.doctor.isolated_trial import Trial, TrialRequest
from hybrid_deploy.runtime.doctor.report import diagnose, isolated

FINE = Check("fine", Verdict.OK, "there")


def test_a_probe_that_raises_is_a_row() -> None:
    def probe() -> Iterator[Check]:
        yield FINE
        raise ValueError("torn\nin two")

    kept, failed = isolated("probe", probe)
    assert kept == FINE
    assert (failed.verdict, failed.found) == (Verdict.FAILED, "ValueError: torn in two")


def test_a_hanging_tool_is_a_row_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nsleep 600\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(doctor_tools, "TOOL_SECONDS", 1.0)
    works = Trial(version="1.0", run_ms=0.1)
    monkeypatch.setattr(doctor, "try_isolated", lambda request, seconds: works)

    def broken() -> Check:
        raise OSError("the disk is gone")

    monkeypatch.setattr(doctor_host, "cache", broken)
    started = time.monotonic()
    rows = {check.name: check for check in diagnose()}
    assert time.monotonic() - started < 30
    assert rows["driver"].found == "nvidia-smi gave no answer in 1 s"
    assert rows["driver"].remedy == "run it by hand; a driver that hangs wants a reboot"
    assert rows["cache"].found == "OSError: the disk is gone"
    assert rows["ONNX Runtime CPU: step"].run_ms == 0.1


def test_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: TrialRequest, seconds: float) -> Trial:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(doctor, "try_isolated", refuse)
    rows = {check.name: check for check in diagnose()}
    assert rows["GPU"].found == "No usable temporary directory found"
    assert rows["ONNX Runtime CPU"].verdict is Verdict.FAILED
    assert rows["memory"].verdict is not Verdict.FAILED

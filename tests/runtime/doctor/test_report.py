from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid_deploy.runtime.doctor import external_tools, host, report
from hybrid_deploy.runtime.doctor.check import Check, Verdict
from hybrid_deploy.runtime.doctor.isolated_trial import Trial, TrialRequest
from hybrid_deploy.runtime.doctor.report import diagnose, run_probe

FINE = Check("fine", Verdict.OK, "there")


def test_a_probe_that_raises_becomes_a_failed_check() -> None:
    def probe() -> Iterator[Check]:
        yield FINE
        raise ValueError("torn\nin two")

    first, failed = run_probe("probe", probe)
    assert first == FINE
    assert (failed.verdict, failed.finding) == (Verdict.FAILED, "ValueError: torn in two")


def test_a_hanging_tool_does_not_stop_the_other_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nsleep 600\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(external_tools, "TOOL_SECONDS", 1.0)
    works = Trial(version="1.0", run_ms=0.1)
    monkeypatch.setattr(report, "try_isolated", lambda request, seconds: works)

    def broken() -> Check:
        raise OSError("the disk is gone")

    monkeypatch.setattr(host, "check_cache", broken)
    started = time.monotonic()
    rows = {check.name: check for check in diagnose()}
    assert time.monotonic() - started < 30
    assert rows["driver"].finding == "nvidia-smi gave no answer in 1 s"
    assert rows["driver"].remedy == "run it by hand; if the driver hangs: reboot"
    assert rows["cache"].finding == "OSError: the disk is gone"
    assert rows["ONNX Runtime CPU: step"].run_ms == 0.1


def test_without_a_temporary_folder_the_other_checks_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: TrialRequest, seconds: float) -> Trial:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(report, "try_isolated", refuse)
    rows = {check.name: check for check in diagnose()}
    assert rows["GPU"].finding == "No usable temporary directory found"
    assert rows["ONNX Runtime CPU"].verdict is Verdict.FAILED
    assert rows["memory"].verdict is not Verdict.FAILED

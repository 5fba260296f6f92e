"""`hybrid-deploy doctor` on this machine, and its report of given checks."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from hybrid_deploy.cli import main
from hybrid_deploy.runtime.doctor import report as doctor_module
from hybrid_deploy.runtime.doctor.check import Check, Verdict
from tests.cli.commands.test_run import WITHOUT_THE_TOOLKIT

SYSTEM = Check("system", Verdict.OK, "Linux " + "x" * 10)
RAN = Check("ONNX Runtime CPU: float", Verdict.OK, "1.32.0", run_ms=0.0254)
NONE = Check("ONNX Runtime CPU", Verdict.MISSING, "not installed", "pip install it")
LONG = Check("TensorRT", Verdict.FAILED, "because " * 40, "see there")


def set_checks(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    """Replaces what `diagnose` returns."""
    monkeypatch.setattr(doctor_module, "diagnose", lambda progress: list(checks))


@pytest.mark.parametrize("output_format", ["table", "json"])
def test_this_machine_runs_onnxruntime_without_the_toolkit(output_format: str) -> None:
    command = [sys.executable, "-c", WITHOUT_THE_TOOLKIT, "doctor", "--format", output_format]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stdout + process.stderr
    if output_format == "table":
        header, _, *lines = process.stdout.splitlines()
        assert header.split() == ["check", "verdict", "ms", "found"]
        assert any(line.startswith("ONNX Runtime CPU: float  ok") for line in lines)
        return
    rows = {row["check"]: row for row in json.loads(process.stdout)}
    assert set(rows["system"]) == {"check", "verdict", "run_ms", "found", "remedy"}
    for graph in ("float", "int8", "step"):
        row = rows[f"ONNX Runtime CPU: {graph}"]
        assert row["verdict"] == "ok" and row["run_ms"] > 0
    assert not any("this check itself failed" in (row["remedy"] or "") for row in rows.values())


def test_remedies_are_a_second_table(monkeypatch: pytest.MonkeyPatch) -> None:
    set_checks(monkeypatch, SYSTEM, RAN, NONE)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0
    findings, remedies = result.stdout.split("\n\n")
    assert [line.split() for line in findings.splitlines()[2:]] == [
        ["system", "ok", "-", "Linux", "xxxxxxxxxx"],
        ["ONNX", "Runtime", "CPU:", "float", "ok", "0.025", "1.32.0"],
        ["ONNX", "Runtime", "CPU", "missing", "-", "not", "installed"],
    ]
    assert remedies.splitlines()[2:] == ["ONNX Runtime CPU  pip install it"]


def test_a_long_finding_is_cut_in_the_table_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    set_checks(monkeypatch, RAN, LONG)
    table = CliRunner().invoke(main, ["doctor"]).stdout
    assert max(map(len, table.splitlines())) < 180
    text = CliRunner().invoke(main, ["doctor", "--format", "csv"]).stdout
    *_, last = csv.DictReader(io.StringIO(text))
    assert (last["found"], last["remedy"]) == (LONG.finding, "see there")


def test_no_backend_is_one_line_and_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    set_checks(monkeypatch, SYSTEM, NONE)
    result = CliRunner().invoke(main, ["doctor", "--format", "json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)[1]["remedy"] == "pip install it"
    assert result.stderr == (
        "error: no backend ran the tiny inference on this machine; do what the report says of "
        "ONNX Runtime CPU, or run: pip install 'hybrid-deploy[cpu]'\n"
    )

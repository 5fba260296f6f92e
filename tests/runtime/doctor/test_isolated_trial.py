"""Real trials on this machine; the fakes of runs on a GPU are in test_tensorrt_trial.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hybrid_deploy.runtime.doctor.isolated_trial import Trial, TrialRequest, try_isolated
from hybrid_deploy.runtime.doctor.tiny_graphs import GRAPHS


def put_module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])


@pytest.mark.parametrize("graph", GRAPHS)
def test_onnxruntime_runs_every_graph(graph: str) -> None:
    trial = try_isolated(TrialRequest("cpu", graph), 120)
    assert trial.error is None and trial.version is not None
    assert trial.run_ms is not None and 0 < trial.run_ms < 1000


@pytest.mark.trt
@pytest.mark.parametrize("graph", GRAPHS)
def test_tensorrt_rtx_builds_every_graph(graph: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    trial = try_isolated(TrialRequest("rtx", graph, "rtx:sm_86"), 300)
    assert trial.error is None and trial.run_ms is None
    assert trial.build_seconds is not None and trial.build_seconds > 0


@pytest.mark.parametrize(
    ("text", "trial"),
    [
        ("import os; os.kill(os.getpid(), 11)", Trial(error="crashed (SIGSEGV)")),
        ("import time; time.sleep(600)", Trial(error="gave no answer in 3 s")),
        ("import os; os._exit(3)", Trial(error="it gave no reason")),
        ("raise RuntimeError('torn\\n  in two')", Trial(error="torn in two")),
    ],
)
def test_a_library_that_does_not_load_ends_its_own_process_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, trial: Trial
) -> None:
    put_module(tmp_path, monkeypatch, "tensorrt", text)
    assert try_isolated(TrialRequest("tensorrt"), 3 if "sleep" in text else 120) == trial


def test_a_process_that_ends_without_a_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_module(tmp_path, monkeypatch, "tensorrt", "import os; os._exit(0)")
    error = try_isolated(TrialRequest("tensorrt"), 120).error
    assert error is not None and error.startswith("ended without an answer: ")


def test_a_package_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "raise ModuleNotFoundError('no onnxruntime', name='onnxruntime')"
    put_module(tmp_path, monkeypatch, "onnxruntime", missing)
    trial = try_isolated(TrialRequest("cpu"), 120)
    assert trial.missing and trial.error is not None and "hybrid-deploy[cpu]" in trial.error

"""Remedies on each platform; the trials are fakes that return a fixed result."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hybrid_deploy.runtime.doctor import backends
from hybrid_deploy.runtime.doctor.backends import (
    Platform,
    check_cuda,
    check_onnxruntime,
    check_tensorrt,
)
from hybrid_deploy.runtime.doctor.check import Check, Verdict
from hybrid_deploy.runtime.doctor.isolated_trial import Gpu, Trial, TrialRequest
from hybrid_deploy.target import Flavour

DESKTOP = Platform(False, Gpu("NVIDIA GeForce RTX 3060", "8.6", "12.4", 12 * 10**9, False))
ORIN = Platform(True, Gpu("Orin", "8.7", "12.6", 30 * 10**9, True))
CPU_ONLY = Platform(False, None)
MISSING = Trial(missing=True, error="not installed")


def always(trial: Trial) -> Callable[[TrialRequest, float], Trial]:
    return lambda request, seconds: trial


def by_graph(trial: Trial, **exceptions: Trial) -> Callable[[TrialRequest, float], Trial]:
    return lambda request, seconds: exceptions.get(request.graph, trial)


def test_onnxruntime_that_runs() -> None:
    first, *rest = check_onnxruntime(always(Trial(version="1.32.0", run_ms=0.02)))
    finding = "1.32.0, convolution and product, opset 18"
    assert first == Check("ONNX Runtime CPU: float", Verdict.OK, finding, run_ms=0.02)
    assert [check.name[18:] for check in rest] == ["int8", "step"]


def test_onnxruntime_too_old_for_opset_24() -> None:
    old = Trial(version="1.23.2", error="it reads ONNX opset 23 at most")
    works = Trial(version="1.23.2", run_ms=0.1)
    *_, step = check_onnxruntime(by_graph(works, step=old))
    assert step.verdict is Verdict.WARN
    assert step.remedy == (
        "export with --opset 21, or upgrade onnxruntime to 1.25 or newer (Python 3.11 or newer)"
    )


def test_no_onnxruntime() -> None:
    (row,) = check_onnxruntime(always(MISSING))
    assert (row.verdict, row.remedy) == (Verdict.MISSING, "pip install 'hybrid-deploy[cpu]'")


def test_cuda_provider() -> None:
    assert check_cuda(CPU_ONLY, always(MISSING)).finding == "not run: no GPU"
    install = "pip uninstall onnxruntime, then: pip install 'hybrid-deploy[cuda]'"
    assert check_cuda(DESKTOP, always(MISSING)).remedy == install
    on_jetson = check_cuda(ORIN, always(MISSING)).remedy
    assert on_jetson is not None and "no kernels for sm_87 and sm_110" in on_jetson
    failed = Trial(version="1.32.0", cuda="13.0", error="did not load")
    assert check_cuda(DESKTOP, always(failed)).remedy == (
        "the driver supports CUDA 12.4, the library needs CUDA 13: install driver 580+"
    )
    works = check_cuda(DESKTOP, always(Trial(version="1.32.0", run_ms=0.1)))
    assert (works.verdict, works.run_ms) == (Verdict.OK, 0.1)


@pytest.mark.parametrize(
    ("platform", "flavour", "remedy"),
    [
        (DESKTOP, Flavour.TENSORRT, "pip install 'hybrid-deploy[tensorrt]'"),
        (
            CPU_ONLY,
            Flavour.TENSORRT,
            "only with an NVIDIA GPU: pip install 'hybrid-deploy[tensorrt]'",
        ),
        (CPU_ONLY, Flavour.RTX, "pip install 'hybrid-deploy[rtx]'"),
        (
            ORIN,
            Flavour.TENSORRT,
            "use JetPack's own: sudo apt install nvidia-jetpack; in a venv: --system-site-packages",
        ),
        (ORIN, Flavour.RTX, "not for Jetson: use JetPack's TensorRT, --target local"),
    ],
)
def test_no_tensorrt(platform: Platform, flavour: Flavour, remedy: str) -> None:
    (row,) = check_tensorrt(platform, flavour, always(MISSING))
    assert (row.verdict, row.finding, row.remedy) == (Verdict.MISSING, "not installed", remedy)


def test_tensorrt_that_does_not_load() -> None:
    (row,) = check_tensorrt(CPU_ONLY, Flavour.RTX, always(Trial(error="crashed (SIGSEGV)")))
    assert (row.verdict, row.finding) == (Verdict.FAILED, "does not load: crashed (SIGSEGV)")


def test_without_a_gpu_engines_are_built_and_not_run() -> None:
    requests: list[TrialRequest] = []

    def run_trial(request: TrialRequest, seconds: float) -> Trial:
        requests.append(request)
        return Trial(version="1.7.1.116", build_seconds=0.25)

    *builds, last = check_tensorrt(CPU_ONLY, Flavour.RTX, run_trial)
    assert builds[0].finding == "1.7.1.116, convolution and product, opset 18; built in 0.25 s"
    assert all(check.run_ms is None for check in builds)
    assert (last.verdict, last.finding) == (Verdict.MISSING, "not run: no GPU")
    assert {(each.target, each.on_gpu) for each in requests[1:]} == {("rtx:sm_86", False)}


def test_tensorrt_builds_on_a_gpu_only() -> None:
    (row,) = check_tensorrt(CPU_ONLY, Flavour.TENSORRT, always(Trial(version="10.13.0")))
    assert row.verdict is Verdict.WARN
    assert row.finding == "10.13.0 loads; not run: no GPU, and it builds on a GPU only"


@pytest.mark.parametrize(
    ("platform", "flavour", "target"),
    [
        (DESKTOP, Flavour.RTX, "rtx:sm_86"),
        (ORIN, Flavour.RTX, "rtx:any"),
        (ORIN, Flavour.TENSORRT, "local"),
    ],
)
def test_with_a_gpu_engines_are_built_for_it_and_run(
    platform: Platform, flavour: Flavour, target: str
) -> None:
    requests: list[TrialRequest] = []

    def run_trial(request: TrialRequest, seconds: float) -> Trial:
        requests.append(request)
        return Trial(version="10.3.0", build_seconds=2.0, run_ms=0.05)

    rows = list(check_tensorrt(platform, flavour, run_trial))
    assert [row.run_ms for row in rows] == [0.05] * 3
    assert {(each.target, each.on_gpu) for each in requests[1:]} == {(target, True)}


def test_tensorrt_of_jetpack_6_cannot_write_caches_in_place() -> None:
    works = Trial(version="10.3.0", build_seconds=2.0, run_ms=0.05)
    refused = Trial(version="10.3.0", error="step: TensorRT cannot read the graph: TensorScatter")
    *_, step = check_tensorrt(ORIN, Flavour.TENSORRT, by_graph(works, step=refused))
    assert step.verdict is Verdict.WARN
    assert step.remedy == "TensorRT writes caches in place from 10.15 on: export with --opset 21"


def test_a_driver_too_old_for_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "cuda_major_of_package", lambda package: 13)
    failed = Trial(version="1.7.1.116", build_seconds=0.2, error="not loaded")
    by_name = {"step": Trial(version="1.7.1.116"), "int8": Trial(version="1.7.1.116")}
    loads_only = by_graph(failed, **by_name)

    def run_trial(request: TrialRequest, seconds: float) -> Trial:
        return loads_only(request, seconds) if request.target else Trial(version="1.7.1.116")

    first, *_ = check_tensorrt(DESKTOP, Flavour.RTX, run_trial)
    assert first.finding.endswith("opset 18; built in 0.20 s; not loaded")
    assert (
        first.remedy
        == "the driver supports CUDA 12.4, the library needs CUDA 13: install driver 580+"
    )

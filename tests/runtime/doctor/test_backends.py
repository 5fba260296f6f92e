"""What is advised on which platform, by trials that only say how they ended."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hybrid_deploy.runtime.doctor import backends as doctor_backends
from hybrid_deploy.runtime.doctor.backends import (
    Platform,
    cuda_check,
    onnxruntime_checks,
    tensorrt_checks,
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


def by_graph(trial: Trial, **other: Trial) -> Callable[[TrialRequest, float], Trial]:
    return lambda request, seconds: other.get(request.graph, trial)


def test_onnxruntime_that_runs() -> None:
    first, *rest = onnxruntime_checks(always(Trial(version="1.32.0", run_ms=0.02)))
    found = "1.32.0, convolution and product, opset 18"
    assert first == Check("ONNX Runtime CPU: float", Verdict.OK, found, run_ms=0.02)
    assert [check.name[18:] for check in rest] == ["int8", "step"]


def test_onnxruntime_too_old_for_opset_24() -> None:
    old = Trial(version="1.23.2", error="it reads ONNX opset 23 at most")
    works = Trial(version="1.23.2", run_ms=0.1)
    *_, step = onnxruntime_checks(by_graph(works, step=old))
    assert step.verdict is Verdict.WARN
    assert step.remedy == (
        "export with --opset 21, or upgrade onnxruntime to 1.25 or newer (Python 3.11 or newer)"
    )


def test_no_onnxruntime() -> None:
    (row,) = onnxruntime_checks(always(MISSING))
    assert (row.verdict, row.remedy) == (Verdict.MISSING, "pip install 'hybrid-deploy[cpu]'")


def test_cuda_provider() -> None:
    assert cuda_check(CPU_ONLY, always(MISSING)).found == "not run: no GPU"
    install = "pip uninstall onnxruntime, then: pip install 'hybrid-deploy[cuda]'"
    assert cuda_check(DESKTOP, always(MISSING)).remedy == install
    on_jetson = cuda_check(ORIN, always(MISSING)).remedy
    assert on_jetson is not None and "no kernels for sm_87 and sm_110" in on_jetson
    failed = Trial(version="1.32.0", cuda="13.0", error="did not load")
    assert cuda_check(DESKTOP, always(failed)).remedy == (
        "the driver serves CUDA 12.4, it needs CUDA 13: install driver 580+"
    )
    works = cuda_check(DESKTOP, always(Trial(version="1.32.0", run_ms=0.1)))
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
    (row,) = tensorrt_checks(platform, flavour, always(MISSING))
    assert (row.verdict, row.found, row.remedy) == (Verdict.MISSING, "not installed", remedy)


def test_tensorrt_that_does_not_load() -> None:
    (row,) = tensorrt_checks(CPU_ONLY, Flavour.RTX, always(Trial(error="crashed (SIGSEGV)")))
    assert (row.verdict, row.found) == (Verdict.FAILED, "does not load: crashed (SIGSEGV)")


def test_builds_without_a_gpu_say_that_nothing_ran() -> None:
    asked: list[TrialRequest] = []

    def try_out(request: TrialRequest, seconds: float) -> Trial:
        asked.append(request)
        return Trial(version="1.7.1.116", build_seconds=0.25)

    *builds, last = tensorrt_checks(CPU_ONLY, Flavour.RTX, try_out)
    assert builds[0].found == "1.7.1.116, convolution and product, opset 18; built in 0.25 s"
    assert all(check.run_ms is None for check in builds)
    assert (last.verdict, last.found) == (Verdict.MISSING, "not run: no GPU")
    assert {(one.target, one.on_gpu) for one in asked[1:]} == {("rtx:sm_86", False)}


def test_tensorrt_builds_on_a_gpu_only() -> None:
    (row,) = tensorrt_checks(CPU_ONLY, Flavour.TENSORRT, always(Trial(version="10.13.0")))
    assert row.verdict is Verdict.WARN
    assert row.found == "10.13.0 loads; not run: no GPU, and it builds on a GPU only"


@pytest.mark.parametrize(
    ("platform", "flavour", "target"),
    [
        (DESKTOP, Flavour.RTX, "rtx:sm_86"),
        (ORIN, Flavour.RTX, "rtx:any"),
        (ORIN, Flavour.TENSORRT, "local"),
    ],
)
def test_a_gpu_is_built_for_and_run_on(platform: Platform, flavour: Flavour, target: str) -> None:
    asked: list[TrialRequest] = []

    def try_out(request: TrialRequest, seconds: float) -> Trial:
        asked.append(request)
        return Trial(version="10.3.0", build_seconds=2.0, run_ms=0.05)

    rows = list(tensorrt_checks(platform, flavour, try_out))
    assert [row.run_ms for row in rows] == [0.05] * 3
    assert {(one.target, one.on_gpu) for one in asked[1:]} == {(target, True)}


def test_tensorrt_of_jetpack_6_has_no_caches_of_its_own() -> None:
    works = Trial(version="10.3.0", build_seconds=2.0, run_ms=0.05)
    refused = Trial(version="10.3.0", error="step: TensorRT cannot read the graph: TensorScatter")
    *_, step = tensorrt_checks(ORIN, Flavour.TENSORRT, by_graph(works, step=refused))
    assert step.verdict is Verdict.WARN
    assert step.remedy == "caches of its own begin with TensorRT 10.15: export with --opset 21"


def test_a_driver_too_old_for_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_backends, "cuda_of_package", lambda package: 13)
    failed = Trial(version="1.7.1.116", build_seconds=0.2, error="not loaded")
    by_name = {"step": Trial(version="1.7.1.116"), "int8": Trial(version="1.7.1.116")}
    loads_only = by_graph(failed, **by_name)

    def try_out(request: TrialRequest, seconds: float) -> Trial:
        return loads_only(request, seconds) if request.target else Trial(version="1.7.1.116")

    first, *_ = tensorrt_checks(DESKTOP, Flavour.RTX, try_out)
    assert first.found.endswith("opset 18; built in 0.20 s; not loaded")
    assert first.remedy == "the driver serves CUDA 12.4, it needs CUDA 13: install driver 580+"

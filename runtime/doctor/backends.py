"""Tries every backend on tiny graphs, and names a remedy for each one that does not run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hybrid_deploy.runtime.doctor.check import Check, Verdict
from hybrid_deploy.runtime.doctor.isolated_trial import Gpu, Trial, TrialKind, TrialRequest
from hybrid_deploy.runtime.doctor.nvidia import cuda_major_of_package, driver_remedy
from hybrid_deploy.runtime.doctor.tiny_graphs import FLOAT, INT8, STEP, TinyGraph
from hybrid_deploy.target import TARGETS, Flavour

RUN_SECONDS = 60.0
BUILD_SECONDS = 300.0

_NEWER_ONNXRUNTIME = (
    "export with --opset 21, or upgrade onnxruntime to 1.25 or newer (Python 3.11 or newer)"
)
_SYSTEM_TENSORRT = (
    "use JetPack's own: sudo apt install nvidia-jetpack; in a venv: --system-site-packages"
)
_NO_CUDA_ON_JETSON = (
    "none: PyPI's onnxruntime-gpu has no kernels for sm_87 and sm_110; on Jetson use TensorRT"
)
_INSTALL_CUDA = "pip uninstall onnxruntime, then: pip install 'hybrid-deploy[cuda]'"
_INSTALL_CUDA_LIBRARIES = "it needs CUDA and cuDNN: pip install 'onnxruntime-gpu[cuda,cudnn]'"
_INSTALL_CPU = "pip install 'hybrid-deploy[cpu]'"
_NO_GPU = "not run: no GPU"
_BUILD_TARGET = "rtx:sm_86"

TrialRunner = Callable[[TrialRequest, float], Trial]
"""Carries out a trial within a time limit in seconds, as `isolated_trial.try_isolated` does."""


@dataclass(frozen=True)
class Platform:
    """The facts of a machine that decide which remedy fits.

    Attributes:
        jetson: whether the machine is a Jetson.
        gpu: first GPU of the machine; None without a usable one.
    """

    jetson: bool
    gpu: Gpu | None


def check_onnxruntime(run_trial: TrialRunner) -> Iterator[Check]:
    """Runs every tiny graph in ONNX Runtime on the CPU; yields one check for each graph."""
    for graph in (FLOAT, INT8, STEP):
        trial = run_trial(TrialRequest("cpu", graph.name), RUN_SECONDS)
        name = f"ONNX Runtime CPU: {graph.name}"
        if trial.missing:
            yield Check("ONNX Runtime CPU", Verdict.MISSING, "not installed", _INSTALL_CPU)
            return
        remedy = _NEWER_ONNXRUNTIME if graph is STEP else f"install it again: {_INSTALL_CPU}"
        yield _trial_check(name, graph, trial, remedy)


def check_cuda(platform: Platform, run_trial: TrialRunner) -> Check:
    """Runs the float graph in ONNX Runtime's CUDA provider and returns the check."""
    name = "ONNX Runtime CUDA"
    install = _NO_CUDA_ON_JETSON if platform.jetson else _INSTALL_CUDA
    if platform.gpu is None:
        return Check(name, Verdict.MISSING, _NO_GPU)
    trial = run_trial(TrialRequest("cuda", FLOAT.name), RUN_SECONDS)
    if trial.missing:
        return Check(name, Verdict.MISSING, "no CUDA provider installed", install)
    needed = int(trial.cuda.partition(".")[0]) if trial.cuda else None
    repair = _NO_CUDA_ON_JETSON if platform.jetson else _INSTALL_CUDA_LIBRARIES
    return _trial_check(name, FLOAT, trial, driver_remedy(platform.gpu, needed) or repair)


def check_tensorrt(platform: Platform, flavour: Flavour, run_trial: TrialRunner) -> Iterator[Check]:
    """Builds every tiny graph and runs it where there is a GPU; yields one check for each graph.

    Args:
        platform: facts of this machine.
        flavour: flavour of TensorRT.
        run_trial: carries out one trial.
    """
    product = "TensorRT-RTX" if flavour is Flavour.RTX else "TensorRT"
    kind: TrialKind = "rtx" if flavour is Flavour.RTX else "tensorrt"
    load_trial = run_trial(TrialRequest(kind), RUN_SECONDS)
    if load_trial.missing or load_trial.error is not None:
        yield _load_failure(product, load_trial, platform, flavour)
        return
    if platform.gpu is None and flavour is Flavour.TENSORRT:
        finding = f"{load_trial.version} loads; {_NO_GPU}, and it builds on a GPU only"
        remedy = "to build with no GPU: pip install 'hybrid-deploy[rtx]'"
        yield Check(product, Verdict.WARN, finding, remedy)
        return
    target = _target(platform.gpu, flavour)
    for graph in (FLOAT, INT8, STEP):
        request = TrialRequest(kind, graph.name, target, on_gpu=platform.gpu is not None)
        trial = run_trial(request, BUILD_SECONDS)
        name = f"{product}: {graph.name}"
        yield _trial_check(name, graph, trial, _build_remedy(graph, platform, flavour))
    if platform.gpu is None:
        remedy = "engines are built here and run on the GPU that they are for"
        yield Check(f"{product} run", Verdict.MISSING, _NO_GPU, remedy)


def _target(gpu: Gpu | None, flavour: Flavour) -> str:
    if flavour is Flavour.TENSORRT:
        return "local"
    if gpu is None:
        return _BUILD_TARGET
    exact_target = f"rtx:sm_{gpu.capability.replace('.', '')}"
    return exact_target if exact_target in TARGETS else "rtx:any"


def _load_failure(product: str, trial: Trial, platform: Platform, flavour: Flavour) -> Check:
    if platform.jetson:
        no_rtx = "not for Jetson: use JetPack's TensorRT, --target local"
        remedy = no_rtx if flavour is Flavour.RTX else _SYSTEM_TENSORRT
    else:
        remedy = f"pip install 'hybrid-deploy[{flavour.value}]'"
        if flavour is Flavour.TENSORRT and platform.gpu is None:
            remedy = f"only with an NVIDIA GPU: {remedy}"
    if trial.missing:
        return Check(product, Verdict.MISSING, "not installed", remedy)
    return Check(product, Verdict.FAILED, f"does not load: {trial.error}", remedy)


def _build_remedy(graph: TinyGraph, platform: Platform, flavour: Flavour) -> str:
    package = "tensorrt-rtx" if flavour is Flavour.RTX else "tensorrt"
    newer_driver = driver_remedy(platform.gpu, cuda_major_of_package(package))
    if newer_driver is not None:
        return newer_driver
    if graph is STEP and flavour is Flavour.TENSORRT:
        return "TensorRT writes caches in place from 10.15 on: export with --opset 21"
    if platform.jetson:
        return _SYSTEM_TENSORRT
    return f"pip install --upgrade --force-reinstall 'hybrid-deploy[{flavour.value}]'"


def _trial_check(name: str, graph: TinyGraph, trial: Trial, remedy: str) -> Check:
    """Returns the check of a trial; a failed step is a warning, as opset 21 can still work."""
    parts = [f"{trial.version}, {graph.title}" if trial.version else graph.title]
    if trial.build_seconds is not None:
        parts.append(f"built in {trial.build_seconds:.2f} s")
    if trial.error is None:
        return Check(name, Verdict.OK, "; ".join(parts), run_ms=trial.run_ms)
    verdict = Verdict.WARN if graph is STEP else Verdict.FAILED
    return Check(name, verdict, "; ".join([*parts, trial.error]), remedy)

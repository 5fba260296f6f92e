"""Every backend tried on tiny graphs, with what to do where one does not run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hybrid_deploy.runtime.doctor.check import Check, Verdict
from hybrid_deploy.runtime.doctor.isolated_trial import Gpu, Kind, Trial, TrialRequest
from hybrid_deploy.runtime.doctor.nvidia import cuda_of_package, too_old_driver
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

Try = Callable[[TrialRequest, float], Trial]


@dataclass(frozen=True)
class Platform:
    """What remedies depend on."""

    jetson: bool
    gpu: Gpu | None


def onnxruntime_checks(try_out: Try) -> Iterator[Check]:
    """Runs every tiny graph on the CPU."""
    for graph in (FLOAT, INT8, STEP):
        trial = try_out(TrialRequest("cpu", graph.name), RUN_SECONDS)
        name = f"ONNX Runtime CPU: {graph.name}"
        if trial.missing:
            yield Check("ONNX Runtime CPU", Verdict.MISSING, "not installed", _INSTALL_CPU)
            return
        remedy = _NEWER_ONNXRUNTIME if graph is STEP else f"install it again: {_INSTALL_CPU}"
        yield _check(name, graph, trial, remedy)


def cuda_check(platform: Platform, try_out: Try) -> Check:
    """Runs the float graph in ONNX Runtime's CUDA provider."""
    name = "ONNX Runtime CUDA"
    install = _NO_CUDA_ON_JETSON if platform.jetson else _INSTALL_CUDA
    if platform.gpu is None:
        return Check(name, Verdict.MISSING, _NO_GPU)
    trial = try_out(TrialRequest("cuda", FLOAT.name), RUN_SECONDS)
    if trial.missing:
        return Check(name, Verdict.MISSING, "no CUDA provider installed", install)
    needed = int(trial.cuda.partition(".")[0]) if trial.cuda else None
    failed = _NO_CUDA_ON_JETSON if platform.jetson else _INSTALL_CUDA_LIBRARIES
    return _check(name, FLOAT, trial, too_old_driver(platform.gpu, needed) or failed)


def tensorrt_checks(platform: Platform, flavour: Flavour, try_out: Try) -> Iterator[Check]:
    """Builds every tiny graph, and runs it where there is a GPU."""
    product = "TensorRT-RTX" if flavour is Flavour.RTX else "TensorRT"
    kind: Kind = "rtx" if flavour is Flavour.RTX else "tensorrt"
    loaded = try_out(TrialRequest(kind), RUN_SECONDS)
    if loaded.missing or loaded.error is not None:
        yield _not_loaded(product, loaded, platform, flavour)
        return
    if platform.gpu is None and flavour is Flavour.TENSORRT:
        found = f"{loaded.version} loads; {_NO_GPU}, and it builds on a GPU only"
        remedy = "to build with no GPU: pip install 'hybrid-deploy[rtx]'"
        yield Check(product, Verdict.WARN, found, remedy)
        return
    target = _target(platform.gpu, flavour)
    for graph in (FLOAT, INT8, STEP):
        request = TrialRequest(kind, graph.name, target, on_gpu=platform.gpu is not None)
        trial = try_out(request, BUILD_SECONDS)
        yield _check(f"{product}: {graph.name}", graph, trial, _remedy(graph, platform, flavour))
    if platform.gpu is None:
        remedy = "engines are built here and run on the GPU that they are for"
        yield Check(f"{product} run", Verdict.MISSING, _NO_GPU, remedy)


def _target(gpu: Gpu | None, flavour: Flavour) -> str:
    if flavour is Flavour.TENSORRT:
        return "local"
    if gpu is None:
        return _BUILD_TARGET
    named = f"rtx:sm_{gpu.capability.replace('.', '')}"
    return named if named in TARGETS else "rtx:any"


def _not_loaded(product: str, trial: Trial, platform: Platform, flavour: Flavour) -> Check:
    if platform.jetson:
        on_jetson = "not for Jetson: use JetPack's TensorRT, --target local"
        remedy = on_jetson if flavour is Flavour.RTX else _SYSTEM_TENSORRT
    else:
        remedy = f"pip install 'hybrid-deploy[{flavour.value}]'"
        if flavour is Flavour.TENSORRT and platform.gpu is None:
            remedy = f"only with an NVIDIA GPU: {remedy}"
    if trial.missing:
        return Check(product, Verdict.MISSING, "not installed", remedy)
    return Check(product, Verdict.FAILED, f"does not load: {trial.error}", remedy)


def _remedy(graph: TinyGraph, platform: Platform, flavour: Flavour) -> str:
    package = "tensorrt-rtx" if flavour is Flavour.RTX else "tensorrt"
    old_driver = too_old_driver(platform.gpu, cuda_of_package(package))
    if old_driver is not None:
        return old_driver
    if graph is STEP and flavour is Flavour.TENSORRT:
        return "caches of its own begin with TensorRT 10.15: export with --opset 21"
    if platform.jetson:
        return _SYSTEM_TENSORRT
    return f"pip install --upgrade --force-reinstall 'hybrid-deploy[{flavour.value}]'"


def _check(name: str, graph: TinyGraph, trial: Trial, remedy: str) -> Check:
    """Makes a row of a trial; without opset 24 a backend still runs graphs of opset 21."""
    parts = [f"{trial.version}, {graph.title}" if trial.version else graph.title]
    if trial.build_seconds is not None:
        parts.append(f"built in {trial.build_seconds:.2f} s")
    if trial.error is None:
        return Check(name, Verdict.OK, "; ".join(parts), run_ms=trial.run_ms)
    verdict = Verdict.WARN if graph is STEP else Verdict.FAILED
    return Check(name, verdict, "; ".join([*parts, trial.error]), remedy)

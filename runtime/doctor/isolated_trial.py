"""Carries out one trial in a process of its own: queries the GPU driver or runs a tiny graph.

A vendor library can crash, hang or print; here it harms its own process only. `try_isolated` starts
`python -m hybrid_deploy.runtime.doctor.isolated_trial` and reads the reply that this process wrote
to its working folder.
"""

from __future__ import annotations

import importlib
import signal
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import msgspec

from hybrid_deploy.errors import MissingDependencyError
from hybrid_deploy.runtime.doctor.external_tools import run_tool
from hybrid_deploy.runtime.host import own_process
from hybrid_deploy.scratch import scratch_folder
from hybrid_deploy.target import Flavour

if TYPE_CHECKING:
    from hybrid_deploy.runtime.doctor.tiny_graphs import Arrays

TrialKind = Literal["gpu", "cpu", "cuda", "tensorrt", "rtx"]

_REPLY_FILE = "reply.json"
_RUNS = 20
_LONGEST_REASON = 400


class TrialRequest(msgspec.Struct, frozen=True):
    """One trial.

    Attributes:
        kind: `gpu` queries the driver; `cpu` and `cuda` run a graph in ONNX Runtime; `tensorrt` and
            `rtx` build one.
        graph: name of the tiny graph.
        target: name of the target that TensorRT builds for; "" only loads TensorRT.
        on_gpu: whether TensorRT also runs the engine that it built.
    """

    kind: TrialKind
    graph: str = "float"
    target: str = ""
    on_gpu: bool = False


class Gpu(msgspec.Struct, frozen=True):
    """The first GPU, as the driver describes it.

    Attributes:
        name: name of the model, such as `NVIDIA L4`.
        capability: compute capability, such as `8.6`.
        cuda: newest CUDA version that the driver supports, such as `12.8`.
        memory_bytes: size of the GPU's memory in bytes.
        shares_memory: whether the GPU shares the RAM of the CPU.
    """

    name: str
    capability: str
    cuda: str
    memory_bytes: int
    shares_memory: bool


class Trial(msgspec.Struct, frozen=True):
    """The result of a trial; a field is None where the trial did not get that far.

    Attributes:
        version: version of the library.
        cuda: CUDA version that ONNX Runtime was built for; set only where a run has failed and the
            package states the version.
        build_seconds: time that TensorRT took to build the graph, in seconds.
        run_ms: median time of a run with correct outputs, in milliseconds.
        gpu: GPU that the driver describes.
        missing: whether the library is not installed.
        error: reason of a failure in one line.
    """

    version: str | None = None
    cuda: str | None = None
    build_seconds: float | None = None
    run_ms: float | None = None
    gpu: Gpu | None = None
    missing: bool = False
    error: str | None = None


def try_isolated(request: TrialRequest, seconds: float) -> Trial:
    """Carries out a trial in a new process and returns its result; failures are in the result.

    Args:
        request: the trial.
        seconds: time limit in seconds.
    """
    with scratch_folder("doctor") as folder:
        command = own_process.command(__name__, msgspec.json.encode(request).decode())
        try:
            result = run_tool(
                command, seconds, folder=folder, environment=own_process.environment()
            )
        except TimeoutError:
            return Trial(error=f"gave no answer in {seconds:g} s")
        if result.exit_code < 0:
            return Trial(error=f"crashed ({signal.Signals(-result.exit_code).name})")
        if result.exit_code > 0:
            return Trial(error=_one_line(result.last_line))
        try:
            return msgspec.json.decode((folder / _REPLY_FILE).read_bytes(), type=Trial)
        except (OSError, msgspec.MsgspecError) as error:
            return Trial(error=_one_line(f"ended without an answer: {error}"))


def main() -> None:
    """Carries out the request on the command line; the reply is a file, because libraries print."""
    own_process.end_with_parent()
    request = msgspec.json.decode(sys.argv[1], type=TrialRequest)
    try:
        reply = _TRIALS[request.kind](request)
    except MissingDependencyError as error:
        reply = Trial(missing=True, error=str(error))
    except Exception as error:
        reply = Trial(error=_one_line(f"{error}"))
    Path(_REPLY_FILE).write_bytes(msgspec.json.encode(reply))


def _try_gpu(request: TrialRequest) -> Trial:
    from hybrid_deploy.runtime.host.cuda_driver import CudaDriver
    from hybrid_deploy.runtime.host.local_gpu import local_gpu

    driver, gpu = CudaDriver(), local_gpu()
    if gpu is None:
        return Trial(error="the CUDA driver names no GPU")
    return Trial(
        gpu=Gpu(
            gpu.name,
            gpu.capability,
            driver.version(),
            driver.memory_bytes(),
            driver.is_integrated(),
        )
    )


def _try_onnxruntime(request: TrialRequest) -> Trial:
    from hybrid_deploy.runtime.doctor import onnxruntime_trial as backend
    from hybrid_deploy.runtime.doctor.tiny_graphs import GRAPHS

    graph = GRAPHS[request.graph]
    provider = backend.CUDA if request.kind == "cuda" else backend.CPU
    try:
        run_ms = _median_ms(backend.LoadedGraph(graph, provider), graph.check)
    except MissingDependencyError as error:
        return Trial(version=backend.VERSION, missing=True, error=str(error))
    except Exception as error:
        return Trial(
            version=backend.VERSION,
            cuda=_cuda_of_onnxruntime(),
            error=_one_line(backend.error_reason(error)),
        )
    return Trial(version=backend.VERSION, run_ms=run_ms)


def _cuda_of_onnxruntime() -> str | None:
    """Returns the CUDA version of this ONNX Runtime; only onnxruntime-gpu states it."""
    try:
        build_info = importlib.import_module("onnxruntime.capi.build_and_package_info")
    except ImportError:
        return None
    version = getattr(build_info, "cuda_version", None)
    return str(version) if version else None


def _try_tensorrt(request: TrialRequest) -> Trial:
    from hybrid_deploy.runtime.doctor import tensorrt_trial as backend
    from hybrid_deploy.runtime.doctor.tiny_graphs import GRAPHS
    from hybrid_deploy.runtime.tensorrt_builder.vendor_module import load_tensorrt

    graph, build_seconds = GRAPHS[request.graph], None
    vendor = load_tensorrt(Flavour(request.kind))
    try:
        if not request.target:
            return Trial(version=vendor.version)
        started = perf_counter()
        plan = backend.build(graph, request.target)
        build_seconds = perf_counter() - started
        if not request.on_gpu:
            return Trial(version=vendor.version, build_seconds=build_seconds)
        run_ms = _median_ms(backend.LoadedPlan(vendor, plan, graph), graph.check)
    except Exception as error:
        reason = _one_line(f"{error}")
        return Trial(version=vendor.version, build_seconds=build_seconds, error=reason)
    return Trial(version=vendor.version, build_seconds=build_seconds, run_ms=run_ms)


_TRIALS: dict[str, Callable[[TrialRequest], Trial]] = {
    "gpu": _try_gpu,
    "cpu": _try_onnxruntime,
    "cuda": _try_onnxruntime,
    "tensorrt": _try_tensorrt,
    "rtx": _try_tensorrt,
}


def _median_ms(run: Callable[[], Arrays], check: Callable[[Arrays], None]) -> float:
    """Checks the outputs of a first run and returns the median time of later runs."""
    check(run())
    times = []
    for _ in range(_RUNS):
        started = perf_counter()
        run()
        times.append(perf_counter() - started)
    return statistics.median(times) * 1e3


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_REASON else f"{line[: _LONGEST_REASON - 3]}..."


if __name__ == "__main__":
    main()

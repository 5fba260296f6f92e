"""Compiles one ONNX graph to one TensorRT plan, in a process of its own.

Three reasons: a build that TensorRT-RTX 1.7 refuses changes the next plan of the same process, a
crash inside TensorRT would end the whole run, and a builder's RAM is free only when its process
ends. So `compile_isolated` runs `python -m hybrid_deploy.runtime.engines.isolated_build` for every
plan. It kills a process that takes too long: after a failed allocation TensorRT's threads can wait
for each other forever, and such a build looks like a slow one.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import msgspec

from hybrid_deploy.errors import BuildError, HybridDeployError
from hybrid_deploy.runtime.engines.cache import BuiltPlan
from hybrid_deploy.runtime.host import own_process
from hybrid_deploy.runtime.tensorrt_builder.compile import PlanRequest, compile_with_summary
from hybrid_deploy.runtime.tensorrt_builder.layer_report import LayerSummary
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import one_line
from hybrid_deploy.scratch import scratch_folder

_PLAN_FILE, _REPLY_FILE = "plan", "reply.json"
_BYTES_PER_KB = 1024
_NO_RAM = "the build was killed, most likely for lack of RAM; close other programs"


class _Reply(msgspec.Struct, frozen=True):
    seconds: float = 0.0
    error: str | None = None
    layers: LayerSummary | None = None
    peak_bytes: int | None = None


def compile_isolated(request: PlanRequest) -> BuiltPlan:
    """Compiles a graph in a new process and returns its plan.

    Raises:
        BuildError: TensorRT refused the graph, did not build it, crashed, or took too long.
    """
    with scratch_folder("build") as folder:
        process = _run(request, folder)
        if process.returncode != 0:
            raise BuildError(f"{request.graph}: {_failure(process)}")
        reply = msgspec.json.decode((folder / _REPLY_FILE).read_bytes(), type=_Reply)
        if reply.error is not None:
            raise BuildError(reply.error)
        plan = (folder / _PLAN_FILE).read_bytes()
        return BuiltPlan(plan, reply.seconds, reply.layers, reply.peak_bytes)


def _run(request: PlanRequest, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Runs `main` in an empty folder."""
    limit_s = request.options.timeout_s
    try:
        return subprocess.run(
            own_process.command(__name__),
            input=msgspec.json.encode(request),
            capture_output=True,
            cwd=folder,
            env=own_process.environment(),
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:  # `run` killed the process
        raise BuildError(
            f"{request.graph}: no engine after {limit_s:g} s, so the build was stopped; give it "
            "longer with --timeout, or more memory if it hung"
        ) from error


def _failure(process: subprocess.CompletedProcess[bytes]) -> str:
    if -process.returncode == signal.SIGKILL:
        return _NO_RAM
    if process.returncode < 0:
        return f"TensorRT crashed while building ({signal.Signals(-process.returncode).name})"
    lines = process.stderr.decode(errors="replace").strip().splitlines()
    return f"the build process failed: {one_line(lines[-1]) if lines else 'it gave no reason'}"


def main() -> None:
    """Reads a request from stdin and writes the plan and a reply to the working folder.

    The reply does not go to stdout, because TensorRT's native code may print there.
    """
    own_process.end_with_parent()
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=PlanRequest)
    started = perf_counter()
    try:
        plan, layers = compile_with_summary(request)
        seconds = perf_counter() - started
        Path(_PLAN_FILE).write_bytes(plan)
        reply = _Reply(seconds, layers=layers, peak_bytes=_peak_bytes())
    except HybridDeployError as error:
        reply = _Reply(error=str(error))
    except MemoryError:
        reply = _Reply(error=f"{request.graph}: {_NO_RAM}")
    Path(_REPLY_FILE).write_bytes(msgspec.json.encode(reply))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_PER_KB


if __name__ == "__main__":
    main()

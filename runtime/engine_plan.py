"""Compiles one ONNX graph to one TensorRT plan, in a process of its own.

A build that TensorRT-RTX 1.7 refuses changes the next plan of the same process, a crash inside
TensorRT would end the whole run, and a builder's memory is only given back when its process ends.
So `compile_isolated` runs `python -m hybrid_deploy.runtime.engine_plan` for every plan.

Precision lives in the ONNX graph: networks are strongly typed and no flag lowers anything.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from hybrid_deploy.errors import BuildError, HybridDeployError
from hybrid_deploy.runtime.engine_cache import BuiltPlan
from hybrid_deploy.runtime.engine_profile import Profile
from hybrid_deploy.runtime.network_layers import LayerSummary, summarize
from hybrid_deploy.runtime.network_lint import attention_layers, lint_network
from hybrid_deploy.runtime.tensorrt_module import TensorRT, last_error, load_tensorrt, one_line
from hybrid_deploy.target import Flavour, parse_target

SETTINGS = {
    "recipe": 1,
    "strongly_typed": True,
    "tf32": False,
    "decomposable_attention": True,
    "profiling_verbosity": "detailed",
}
"""How `compile_plan` configures TensorRT; part of every cache key, so change it with the code."""

_PLAN_FILE, _REPLY_FILE = "plan", "reply.json"
_BYTES_PER_KB = 1024
_PR_SET_PDEATHSIG = 1  # sys/prctl.h
_NO_MEMORY = "the build was killed, most likely for want of memory; close other programs"


class PlanRequest(msgspec.Struct, frozen=True):
    """What to compile.

    Attributes:
        graph: Names the graph in messages.
        path: The ONNX file.
        target: A target's name.
        profile: The shapes to serve.
        workspace_bytes: Most scratch memory that a layer may take; None leaves TensorRT's limit.
    """

    graph: str
    path: str
    target: str
    profile: Profile
    workspace_bytes: int | None = None


class _Reply(msgspec.Struct, frozen=True):
    seconds: float = 0.0
    error: str | None = None
    layers: LayerSummary | None = None
    peak_bytes: int | None = None


def compile_isolated(request: PlanRequest) -> BuiltPlan:
    """Compiles a graph in a new process.

    Raises:
        BuildError: TensorRT refused the graph, did not build it, or crashed.
    """
    with tempfile.TemporaryDirectory(prefix="hybrid-deploy-build-") as folder:
        # The working folder must hold no modules: `-m` puts it first on the import path.
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=msgspec.json.encode(request),
            capture_output=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            check=False,
        )
        if done.returncode != 0:
            raise BuildError(f"{request.graph}: {_crash(done)}")
        reply = msgspec.json.decode(Path(folder, _REPLY_FILE).read_bytes(), type=_Reply)
        if reply.error is not None:
            raise BuildError(reply.error)
        plan = Path(folder, _PLAN_FILE).read_bytes()
        return BuiltPlan(plan, reply.seconds, reply.layers, reply.peak_bytes)


def _crash(done: subprocess.CompletedProcess[bytes]) -> str:
    if -done.returncode == signal.SIGKILL:
        return _NO_MEMORY
    if done.returncode < 0:
        return f"TensorRT crashed while building ({signal.Signals(-done.returncode).name})"
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return f"the build process failed: {one_line(lines[-1]) if lines else 'it gave no reason'}"


def main() -> None:
    """Reads a request from stdin, writes plan and reply to the working folder.

    Not to stdout: TensorRT's native code may print there.
    """
    _end_with_parent()
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=PlanRequest)
    started = perf_counter()
    try:
        plan, layers = compile_described(request)
        seconds = perf_counter() - started
        Path(_PLAN_FILE).write_bytes(plan)
        reply = _Reply(seconds, layers=layers, peak_bytes=_peak_bytes())
    except HybridDeployError as error:
        reply = _Reply(error=str(error))
    except MemoryError:
        reply = _Reply(error=f"{request.graph}: {_NO_MEMORY}")
    Path(_REPLY_FILE).write_bytes(msgspec.json.encode(reply))


def _end_with_parent() -> None:
    """Asks Linux to kill this process when the one that waits for it is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_PER_KB


def compile_plan(request: PlanRequest) -> bytes:
    """Parses, checks and compiles a graph in this process.

    Raises:
        BuildError: TensorRT refused the graph or did not build it.
    """
    return compile_described(request)[0]


def compile_described(request: PlanRequest) -> tuple[bytes, LayerSummary]:
    """Does what `compile_plan` does, and gives the layers too."""
    graph, target = request.graph, parse_target(request.target)
    vendor = load_tensorrt(target.flavour)
    vendor.log.clear()
    builder = vendor.module.Builder(vendor.log)
    strongly_typed = vendor.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
    network = builder.create_network(1 << int(strongly_typed))
    parser = vendor.module.OnnxParser(network, vendor.log)  # owns weights that the network reads
    if not parser.parse_from_file(request.path):
        raise BuildError(f"{graph}: TensorRT cannot read the graph: {_parser_errors(parser)}")
    lint_network(network, graph)
    _allow_decomposed_attention(vendor, network)
    config = builder.create_builder_config()
    config.clear_flag(vendor.member("BuilderFlag", "TF32"))
    config.profiling_verbosity = vendor.member("ProfilingVerbosity", "DETAILED")
    if request.workspace_bytes is not None:
        workspace = vendor.member("MemoryPoolType", "WORKSPACE")
        config.set_memory_pool_limit(workspace, request.workspace_bytes)
    _set_capability(vendor, config, target.capability, local=target.is_local)
    _add_profile(vendor, builder, config, request)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"{graph}: TensorRT did not build it for {target}: {_refusal(vendor)}")
    return bytes(plan), summarize(network, vendor.log.facts)


def _parser_errors(parser: Any) -> str:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    return one_line(
        "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}".strip(" :") for e in errors)
    )


def _refusal(vendor: TensorRT) -> str:
    reason = last_error(vendor.log)
    return f"{reason}; give it more with --workspace" if "workspace" in reason else reason


def _allow_decomposed_attention(vendor: TensorRT, network: Any) -> None:
    """Lets TensorRT compile an attention as plain layers where it has no fused kernel.

    Without it float32 attention over several tokens does not build at all.
    """
    for layer in attention_layers(network):
        layer.__class__ = vendor.module.IAttentionInputLayer  # `get_layer` gives the base class
        layer.attention.decomposable = True


def _set_capability(vendor: TensorRT, config: Any, capability: str | None, *, local: bool) -> None:
    """Chooses the GPU in TensorRT-RTX; naming none means every one from Ampere on."""
    if vendor.flavour is not Flavour.RTX or (capability is None and not local):
        return
    name = "CURRENT" if capability is None else f"SM{capability}"
    config.num_compute_capabilities = 1
    config.set_compute_capability(vendor.member("ComputeCapability", name), 0)


def _add_profile(vendor: TensorRT, builder: Any, config: Any, request: PlanRequest) -> None:
    if not request.profile:
        return
    profile = builder.create_optimization_profile()
    for name, shapes in request.profile.items():
        profile.set_shape(name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        reason = last_error(vendor.log)
        raise BuildError(f"{request.graph}: TensorRT refuses the manifest's ranges: {reason}")


if __name__ == "__main__":
    main()

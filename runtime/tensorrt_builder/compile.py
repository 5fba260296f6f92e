"""Compiles one ONNX graph to one TensorRT plan; every call to TensorRT's builder is here.

The ONNX graph alone decides the precision: networks are strongly typed, and no flag lowers it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from hybrid_deploy.contract import TOKEN
from hybrid_deploy.errors import BuildError
from hybrid_deploy.runtime.tensorrt_builder import timing_cache
from hybrid_deploy.runtime.tensorrt_builder.layer_report import LayerSummary, summarize
from hybrid_deploy.runtime.tensorrt_builder.network_lint import attention_layers, lint_network
from hybrid_deploy.runtime.tensorrt_builder.next_token_outputs import add_next_token_outputs
from hybrid_deploy.runtime.tensorrt_builder.optimization_profile import (
    OptimizationProfile,
    fix_single_sizes,
)
from hybrid_deploy.runtime.tensorrt_builder.options import DEFAULT_OPTIONS, BuildOptions
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import (
    TensorRT,
    last_error,
    load_tensorrt,
    one_line,
)
from hybrid_deploy.target import Flavour, Target, parse_target

SETTINGS = {
    "recipe": 3,
    "strongly_typed": True,
    "tf32": False,
    "decomposable_attention": True,
    "profiling_verbosity": "detailed",
    "recordable_steps": True,
}
"""Settings of `compile_plan`, part of every cache key: change them together with the code."""


class PlanRequest(msgspec.Struct, frozen=True):
    """The request to compile one graph.

    Attributes:
        graph: name of the graph, for messages.
        path: ONNX file of the graph.
        target: name of the target.
        optimization_profile: shapes that the engine supports.
        options: options of the build.
        capacity: rows of a cache; a decoder graph then gets the outputs of `next_token_outputs`.
            None adds no outputs.
        timing_cache: file of the kernel times that TensorRT measured; None for TensorRT-RTX.
    """

    graph: str
    path: str
    target: str
    optimization_profile: OptimizationProfile
    options: BuildOptions = DEFAULT_OPTIONS
    capacity: int | None = None
    timing_cache: str | None = None


def compile_plan(request: PlanRequest) -> bytes:
    """Parses, checks and compiles a graph in this process; returns the serialized engine.

    Raises:
        BuildError: TensorRT refused the graph or did not build it.
    """
    return compile_with_summary(request)[0]


def compile_with_summary(request: PlanRequest) -> tuple[bytes, LayerSummary]:
    """Does the same as `compile_plan` and also returns a summary of the engine's layers."""
    target = parse_target(request.target)
    vendor = load_tensorrt(target.flavour)
    vendor.log.clear()
    builder = vendor.module.Builder(vendor.log)
    strongly_typed = vendor.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
    network = builder.create_network(1 << int(strongly_typed))
    parser = vendor.module.OnnxParser(
        network, vendor.log
    )  # must outlive the network, which reads its weights
    if not parser.parse_from_file(request.path):
        reason = _parser_errors(parser)
        raise BuildError(f"{request.graph}: TensorRT cannot read the graph: {reason}")
    varying_shapes = fix_single_sizes(network, request.optimization_profile)
    lint_network(network, request.graph)
    borrowed = (
        []
        if request.capacity is None
        else add_next_token_outputs(vendor, network, request.capacity)
    )
    _allow_decomposed_attention(vendor, network)
    config = _config(vendor, builder, request, target)
    if request.capacity is not None:
        _allow_recording(vendor, network, config)
    if request.timing_cache is not None:
        borrowed.append(timing_cache.attach(config, Path(request.timing_cache)))
    _add_optimization_profile(vendor, builder, config, varying_shapes, request.graph)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = _refusal(vendor)
        raise BuildError(f"{request.graph}: TensorRT did not build it for {target}: {reason}")
    if request.timing_cache is not None:
        timing_cache.save(config, Path(request.timing_cache))
    del borrowed  # not earlier: TensorRT reads constants and times from their own buffers
    return bytes(plan), summarize(network, vendor.log.facts)


def _config(vendor: TensorRT, builder: Any, request: PlanRequest, target: Target) -> Any:
    config, options = builder.create_builder_config(), request.options
    config.clear_flag(vendor.member("BuilderFlag", "TF32"))
    config.profiling_verbosity = vendor.member("ProfilingVerbosity", "DETAILED")
    if options.workspace_bytes is not None:
        workspace = vendor.member("MemoryPoolType", "WORKSPACE")
        config.set_memory_pool_limit(workspace, options.workspace_bytes)
    if options.hardware_compatible:
        level = vendor.member("HardwareCompatibilityLevel", "AMPERE_PLUS")
        config.hardware_compatibility_level = level
    if options.version_compatible:
        config.set_flag(vendor.member("BuilderFlag", "VERSION_COMPATIBLE"))
    _set_capability(vendor, config, target.capability, local=target.is_local)
    return config


def _parser_errors(parser: Any) -> str:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    return one_line(
        "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}".strip(" :") for e in errors)
    )


def _refusal(vendor: TensorRT) -> str:
    reason = last_error(vendor.log)
    return f"{reason}; give it more with --workspace" if "workspace" in reason else reason


def _allow_decomposed_attention(vendor: TensorRT, network: Any) -> None:
    """Allows TensorRT to compile an attention as plain layers where it has no fused kernel.

    Without this permission, float32 attention over several tokens does not build.
    """
    for layer in attention_layers(network):
        layer.__class__ = vendor.module.IAttentionInputLayer  # `get_layer` returns the base class
        layer.attention.decomposable = True


def _allow_recording(vendor: TensorRT, network: Any, config: Any) -> None:
    """Makes a step recordable as a CUDA graph: TensorRT-RTX then allocates nothing while it runs.

    TensorRT has no such flag, and its steps are recordable without one.
    """
    inputs = {tensor.name for tensor in map(network.get_input, range(network.num_inputs))}
    if TOKEN in inputs and "REQUIRE_USER_ALLOCATION" in vendor.module.BuilderFlag.__members__:
        config.set_flag(vendor.member("BuilderFlag", "REQUIRE_USER_ALLOCATION"))


def _set_capability(vendor: TensorRT, config: Any, capability: str | None, *, local: bool) -> None:
    """Sets the GPU of TensorRT-RTX; without a setting it builds for every GPU from Ampere on."""
    if vendor.flavour is not Flavour.RTX or (capability is None and not local):
        return
    name = "CURRENT" if capability is None else f"SM{capability}"
    config.num_compute_capabilities = 1
    config.set_compute_capability(vendor.member("ComputeCapability", name), 0)


def _add_optimization_profile(
    vendor: TensorRT, builder: Any, config: Any, shapes: OptimizationProfile, graph: str
) -> None:
    if not shapes:
        return
    optimization_profile = builder.create_optimization_profile()
    for name, bounds in shapes.items():
        optimization_profile.set_shape(name, *bounds)
    if config.add_optimization_profile(optimization_profile) < 0:
        reason = last_error(vendor.log)
        raise BuildError(f"{graph}: TensorRT refuses the manifest's ranges: {reason}")

"""Builds TensorRT engines from the graphs of a bundle, or finds them in the cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.device_support import tensorrt_refusal
from hybrid_deploy.errors import BuildError
from hybrid_deploy.progress import Progress, silent
from hybrid_deploy.runtime.engines.cache import (
    BuiltFor,
    BuiltPlan,
    CachedPlan,
    EngineCache,
    PlanRecord,
)
from hybrid_deploy.runtime.engines.cache_key import shaped_by, verified_copy, weight_bytes
from hybrid_deploy.runtime.engines.cache_listing import compatible_build, last_build
from hybrid_deploy.runtime.engines.isolated_build import compile_isolated
from hybrid_deploy.runtime.engines.ram_check import check_build_fits
from hybrid_deploy.runtime.host.local_gpu import LocalGpu, local_gpu
from hybrid_deploy.runtime.tensorrt_builder.cache_write_support import check_cache_write
from hybrid_deploy.runtime.tensorrt_builder.compile import PlanRequest
from hybrid_deploy.runtime.tensorrt_builder.layer_report import LayerSummary
from hybrid_deploy.runtime.tensorrt_builder.optimization_profile import optimization_profile_of
from hybrid_deploy.runtime.tensorrt_builder.options import (
    DEFAULT_OPTIONS,
    BuildOptions,
    check_options,
)
from hybrid_deploy.runtime.tensorrt_builder.timing_cache import timing_cache_file
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import TensorRT, load_tensorrt
from hybrid_deploy.system_errors import typed_errors
from hybrid_deploy.target import Target


@dataclass(frozen=True)
class EngineRecord:
    """One engine on disk.

    Attributes:
        role: role of the graph that was built.
        variant: name of the variant.
        target: name of the target.
        path: file of the serialized engine; `cache.read_plan` reads and checks it.
        seconds: time that TensorRT took to read the graph and to build the engine, in seconds; for
            an engine from the cache, the time of its own build.
        size_bytes: size of the serialized engine.
        key: SHA-256 of everything that the engine depends on; its key in the cache.
        from_cache: whether the engine was in the cache already.
        layers: summary of the engine's layers; None if an old record has none.
    """

    role: GraphRole
    variant: str
    target: str
    path: Path
    seconds: float
    size_bytes: int
    key: str
    from_cache: bool
    layers: LayerSummary | None = None


@typed_errors()
def build_engines(
    bundle: Bundle,
    variant: str,
    target: Target,
    *,
    cache: EngineCache | None = None,
    progress: Progress = silent,
    options: BuildOptions = DEFAULT_OPTIONS,
) -> list[EngineRecord]:
    """Builds all graphs of a variant that a GPU backend runs, or finds their engines in the cache.

    The arguments are those of `build_engine`.

    Returns:
        A record of each engine, in the order of `Bundle.loop_graphs`.

    Raises:
        InputError, UsageError, MissingDependencyError, BuildError: as `build_engine` raises them.
    """
    return [
        build_engine(bundle, variant, role, target, cache=cache, progress=progress, options=options)
        for role in bundle.loop_graphs(variant)
    ]


def build_engine(
    bundle: Bundle,
    variant: str,
    role: GraphRole,
    target: Target,
    *,
    cache: EngineCache | None = None,
    progress: Progress = silent,
    options: BuildOptions = DEFAULT_OPTIONS,
) -> EngineRecord:
    """Builds one graph of a variant, or finds its engine in the cache.

    The engine supports the ranges of the bundle's dimensions; `optimization_profile.narrow_dims`
    returns a bundle with narrower ones.

    Args:
        bundle: the opened bundle.
        variant: name of the variant.
        role: role of the graph.
        target: the flavour of TensorRT and the GPU to build for.
        cache: cache of engines; None takes the user's own cache folder.
        progress: called when a build begins and ends, when the engine is found in the cache, and
            when a damaged one is built again; the stage is a sentence for the user.
        options: further options of the build.

    Raises:
        InputError: the bundle has no such variant, or the cache folder cannot be used.
        UsageError: this TensorRT, or this GPU, does not support an option.
        MissingDependencyError: the TensorRT of the target is not installed.
        BuildError: the variant is for a CPU, TensorRT is too old for the graph or refused it, there
            is too little RAM, or the build took too long.
    """
    _check_precision(bundle, variant)
    cache = cache or EngineCache()
    graph = f"{variant}/{role.value}"
    spec = bundle.graph(variant, role)
    optimization_profile = optimization_profile_of(bundle, spec, graph)
    gpu = _required_gpu(target)
    vendor = load_tensorrt(target.flavour)
    check_options(options, vendor.flavour, gpu)
    check_cache_write(bundle.variant(variant), graph, vendor.flavour, vendor.version)
    capacity = None if role is GraphRole.ENCODER else bundle.manifest.capacity
    times = timing_cache_file(cache.folder, vendor.flavour, vendor.version, gpu)
    request = PlanRequest(
        graph,
        str(bundle.folder / spec.file),
        str(target),
        optimization_profile,
        options,
        capacity,
        str(times) if times else None,
    )
    description = shaped_by(bundle, spec, request, vendor, gpu)
    if options.version_compatible:
        description = compatible_build(cache, description) or description

    def build() -> BuiltPlan:
        last = last_build(cache, description)
        workspace_bytes = options.workspace_bytes if gpu else None
        check_build_fits(graph, weight_bytes(bundle, spec), workspace_bytes, last)
        stage = f"building {graph} for {target}{_last_build_note(last, vendor)}"
        progress(stage, 0, 1)
        with verified_copy(bundle, spec) as path:
            plan = compile_isolated(msgspec.structs.replace(request, path=str(path)))
        progress(stage, 1, 1)
        return plan

    built_for = BuiltFor(bundle.manifest.name, variant, role.value)
    plan = cache.get_or_build(description, build, lambda reason: progress(reason, 1, 1), built_for)
    if plan.from_cache:
        progress(f"{graph} for {target} is in the cache", 1, 1)
    return _engine_record(role, variant, target, plan)


def _engine_record(role: GraphRole, variant: str, target: Target, plan: CachedPlan) -> EngineRecord:
    return EngineRecord(
        role=role,
        variant=variant,
        target=str(target),
        path=plan.path,
        seconds=plan.record.build_seconds,
        size_bytes=plan.record.size_bytes,
        key=plan.path.parent.name,
        from_cache=plan.from_cache,
        layers=plan.record.layers,
    )


def _check_precision(bundle: Bundle, variant: str) -> None:
    precision = bundle.variant(variant).precision
    refusal = tensorrt_refusal(precision.encoder, precision.decoder)
    if refusal is not None:
        raise BuildError(f"variant {variant} is not for TensorRT; {refusal}")


def _last_build_note(last: PlanRecord | None, vendor: TensorRT) -> str:
    if last is None:
        return ""
    version = last.shaped_by.get("version")
    by = f" by TensorRT {version}, now {vendor.version}" if version != vendor.version else ""
    return f", last time {last.build_seconds:.0f} s{by}"


def _required_gpu(target: Target) -> LocalGpu | None:
    if not target.is_local:
        return None
    gpu = local_gpu()
    if gpu is None:
        raise BuildError(
            f"target {target} needs an NVIDIA GPU and this machine has none at hand; "
            "build for a named one: --target rtx:sm_86"
        )
    return gpu

"""Builds TensorRT engines from the graphs of a bundle, or finds them in the cache."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hybrid_deploy.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.devices import tensorrt_refusal
from hybrid_deploy.errors import BuildError
from hybrid_deploy.manifest import FileRecord, GraphSpec
from hybrid_deploy.runtime.build_memory import check_memory
from hybrid_deploy.runtime.cached_engines import last_build
from hybrid_deploy.runtime.engine_cache import BuiltFor, BuiltPlan, EngineCache, PlanRecord
from hybrid_deploy.runtime.engine_plan import SETTINGS, PlanRequest, compile_isolated
from hybrid_deploy.runtime.engine_profile import Profile, graph_profile
from hybrid_deploy.runtime.local_gpu import LocalGpu, local_gpu
from hybrid_deploy.runtime.network_layers import LayerSummary
from hybrid_deploy.runtime.tensorrt_module import TensorRT, load_tensorrt
from hybrid_deploy.target import Target

Progress = Callable[[str], None]


@dataclass(frozen=True)
class EngineRecord:
    """One engine on disk.

    Attributes:
        role: Which graph of the variant it is.
        variant: The variant's name.
        target: The target's name.
        path: The serialized engine; read it with `engine_cache.read_plan`, which checks it.
        seconds: How long TensorRT took to read and build it, now or when it entered the cache.
        size_bytes: Size of the plan.
        key: SHA-256 of everything that shaped it.
        from_cache: Whether it was there already.
        layers: What TensorRT made of the graph; None where an old record does not say.
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


def build_engines(
    bundle: Bundle,
    variant: str,
    target: Target,
    *,
    cache: EngineCache | None = None,
    progress: Progress | None = None,
    workspace_bytes: int | None = None,
) -> list[EngineRecord]:
    """Builds all graphs of a variant, or finds them in the cache.

    Raises:
        InputError: the bundle has no such variant.
        MissingDependencyError: the target's TensorRT is not installed.
        BuildError: TensorRT refused a graph; the message has its own words.
    """
    return [
        build_engine(
            bundle,
            variant,
            role,
            target,
            cache=cache,
            progress=progress,
            workspace_bytes=workspace_bytes,
        )
        for role in bundle.graphs(variant)
    ]


def build_engine(
    bundle: Bundle,
    variant: str,
    role: GraphRole,
    target: Target,
    *,
    cache: EngineCache | None = None,
    progress: Progress | None = None,
    workspace_bytes: int | None = None,
) -> EngineRecord:
    """Builds one graph of a variant, or finds its engine in the cache.

    The engine serves the ranges of the bundle's dimensions; `engine_profile.narrowed` gives others.

    Args:
        bundle: The opened bundle.
        variant: Which variant.
        role: Which of its graphs.
        target: What to build for.
        cache: Where engines are kept; None takes this machine's.
        progress: Is told what happens, in lines for people.
        workspace_bytes: Most scratch memory that a layer may take; None leaves TensorRT's limit.

    Raises:
        InputError: the bundle has no such variant.
        MissingDependencyError: the target's TensorRT is not installed.
        BuildError: the variant is for a CPU, or TensorRT refused the graph, in its own words, or
            memory does not suffice.
    """
    _check_form(bundle, variant)
    say, cache = progress or _silent, cache or EngineCache()
    graph = f"{variant}/{role.value}"
    spec = bundle.graph(variant, role)
    profile = graph_profile(bundle, spec, graph)
    gpu = _required_gpu(target)
    vendor = load_tensorrt(target.flavour)
    shaped_by = _shaped_by(bundle, spec, profile, target, gpu, vendor, workspace_bytes)

    def build() -> BuiltPlan:
        last = last_build(cache, shaped_by)
        check_memory(graph, _weight_bytes(bundle, spec), workspace_bytes if gpu else None, last)
        say(f"building {graph} for {target}{_last_time(last, vendor)}")
        path = (bundle.folder / spec.file).resolve()
        request = PlanRequest(graph, str(path), str(target), profile, workspace_bytes)
        return compile_isolated(request)

    built_for = BuiltFor(bundle.manifest.name, variant, role.value)
    plan = cache.get_or_build(shaped_by, build, say, built_for)
    if plan.from_cache:
        say(f"{graph} for {target} is in the cache")
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


def _check_form(bundle: Bundle, variant: str) -> None:
    precision = bundle.variant(variant).precision
    refusal = tensorrt_refusal(precision.encoder, precision.decoder)
    if refusal is not None:
        raise BuildError(f"variant {variant} is not for TensorRT; {refusal}")


def _last_time(last: PlanRecord | None, vendor: TensorRT) -> str:
    if last is None:
        return ""
    version = last.shaped_by.get("version")
    by = f" by TensorRT {version}, now {vendor.version}" if version != vendor.version else ""
    return f", last time {last.build_seconds:.0f} s{by}"


def _silent(message: str) -> None:
    """Drops progress that nobody asked for."""


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


def _shaped_by(
    bundle: Bundle,
    spec: GraphSpec,
    profile: Profile,
    target: Target,
    gpu: LocalGpu | None,
    vendor: TensorRT,
    workspace_bytes: int | None,
) -> dict[str, object]:
    """Describes everything that an engine depends on: the cache's key."""
    return {
        **graph_identity(bundle, spec),
        "flavour": vendor.flavour.value,
        "version": vendor.version,
        "platform": sysconfig.get_platform(),
        "target": str(target),
        "gpu": None if gpu is None else [gpu.name, gpu.capability],
        "profile": {name: [list(shape) for shape in shapes] for name, shapes in profile.items()},
        "settings": {**SETTINGS, "workspace_bytes": workspace_bytes},
    }


def graph_identity(bundle: Bundle, spec: GraphSpec) -> dict[str, object]:
    """Gives what of an engine's key says which graph it is: the hashes of its files."""
    weights = {file: record.sha256 for file, record in _weight_files(bundle, spec).items()}
    return {"graph": bundle.manifest.files[spec.file].sha256, "weights": weights}


def _weight_bytes(bundle: Bundle, spec: GraphSpec) -> int:
    files = [bundle.manifest.files[spec.file], *_weight_files(bundle, spec).values()]
    return sum(record.size_bytes for record in files)


def _weight_files(bundle: Bundle, spec: GraphSpec) -> dict[str, FileRecord]:
    """Gives all data beside a graph: which of it the graph reads, only ONNX could tell."""
    folder = Path(spec.file).parent
    return {
        file: record
        for file, record in bundle.manifest.files.items()
        if folder in Path(file).parents and Path(file).suffix != ".onnx"
    }

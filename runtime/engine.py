"""Builds TensorRT engines from the graphs of a bundle, or finds them in the cache."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hybrid_deploy.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BuildError
from hybrid_deploy.manifest import GraphSpec, TensorSpec
from hybrid_deploy.runtime.engine_cache import BuiltPlan, EngineCache
from hybrid_deploy.runtime.engine_plan import SETTINGS, PlanRequest, Profile, compile_isolated
from hybrid_deploy.runtime.local_gpu import LocalGpu, local_gpu
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
    """

    role: GraphRole
    variant: str
    target: str
    path: Path
    seconds: float
    size_bytes: int
    key: str
    from_cache: bool


def build_engines(
    bundle: Bundle,
    variant: str,
    target: Target,
    *,
    cache: EngineCache | None = None,
    progress: Progress | None = None,
) -> list[EngineRecord]:
    """Builds all graphs of a variant, or finds them in the cache.

    Raises:
        InputError: the bundle has no such variant.
        MissingDependencyError: the target's TensorRT is not installed.
        BuildError: TensorRT refused a graph; the message has its own words.
    """
    return [
        build_engine(bundle, variant, role, target, cache=cache, progress=progress)
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
) -> EngineRecord:
    """Builds one graph of a variant, or finds its engine in the cache.

    Raises:
        InputError: the bundle has no such variant.
        MissingDependencyError: the target's TensorRT is not installed.
        BuildError: TensorRT refused the graph; the message has its own words.
    """
    say = progress or _silent
    graph = f"{variant}/{role.value}"
    spec = bundle.graph(variant, role)
    profile = _profile(bundle, spec, graph)
    gpu = _required_gpu(target)
    vendor = load_tensorrt(target.flavour)

    def build() -> BuiltPlan:
        say(f"building {graph} for {target}")
        path = (bundle.folder / spec.file).resolve()
        return compile_isolated(PlanRequest(graph, str(path), str(target), profile))

    shaped_by = _shaped_by(bundle, spec, profile, target, gpu, vendor)
    plan = (cache or EngineCache()).get_or_build(shaped_by, build, say)
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
    )


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


def _profile(bundle: Bundle, spec: GraphSpec, graph: str) -> Profile:
    """Gives the shapes that an engine must serve, from the manifest's named dimensions."""
    dims = bundle.manifest.dims
    names = {dim for tensor in spec.inputs for dim in tensor.shape if isinstance(dim, str)}
    if missing := sorted(names - dims.keys()):
        raise BuildError(
            f"{graph}: the manifest gives no range for {', '.join(missing)}; export it again"
        )

    def shape(tensor: TensorSpec, bound: str) -> tuple[int, ...]:
        return tuple(getattr(dims[d], bound) if isinstance(d, str) else d for d in tensor.shape)

    return {
        tensor.name: (shape(tensor, "min"), shape(tensor, "typical"), shape(tensor, "max"))
        for tensor in spec.inputs
        if any(isinstance(dim, str) for dim in tensor.shape)
    }


def _shaped_by(
    bundle: Bundle,
    spec: GraphSpec,
    profile: Profile,
    target: Target,
    gpu: LocalGpu | None,
    vendor: TensorRT,
) -> dict[str, object]:
    """Describes everything that an engine depends on: the cache's key."""
    return {
        "graph": bundle.manifest.files[spec.file].sha256,
        "weights": _weight_hashes(bundle, spec),
        "flavour": vendor.flavour.value,
        "version": vendor.version,
        "platform": sysconfig.get_platform(),
        "target": str(target),
        "gpu": None if gpu is None else [gpu.name, gpu.capability],
        "profile": {name: [list(shape) for shape in shapes] for name, shapes in profile.items()},
        "settings": dict(SETTINGS),
    }


def _weight_hashes(bundle: Bundle, spec: GraphSpec) -> dict[str, str]:
    """Hashes of all data beside a graph: which of it the graph reads, only ONNX could tell."""
    folder = Path(spec.file).parent
    return {
        file: record.sha256
        for file, record in bundle.manifest.files.items()
        if folder in Path(file).parents and Path(file).suffix != ".onnx"
    }

"""Finds the engines in the cache that `hybrid-deploy build` made and that this GPU can run."""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping
from pathlib import Path

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.engines.cache import PLAN_FILE, EngineCache
from hybrid_deploy.runtime.engines.cache_key import graph_identity
from hybrid_deploy.runtime.engines.cache_listing import list_engines
from hybrid_deploy.runtime.engines.compatibility import gpu_mismatch, version_mismatch
from hybrid_deploy.runtime.host.local_gpu import LocalGpu
from hybrid_deploy.runtime.tensorrt_builder.compile import SETTINGS
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import TensorRT
from hybrid_deploy.target import parse_target


def find_engine(
    cache: EngineCache,
    bundle: Bundle,
    variant: str,
    role: GraphRole,
    vendor: TensorRT,
    gpu: LocalGpu,
) -> Path:
    """Returns the path of the plan of a graph.

    An engine that was built for this GPU comes before one for its compute capability, and that
    before one for any GPU; among equals, the engine of this TensorRT version, then the last used. A
    build that finds its engine in the cache counts as a use, so the last build wins. Optimization
    profile and workspace size are not compared. Load the plan with `engines.cache.read_plan`, which
    checks it.

    Args:
        cache: the engine cache.
        bundle: the bundle.
        variant: name of the variant.
        role: role of the graph.
        vendor: the vendor's module, for its flavour and version.
        gpu: the GPU of this machine.

    Raises:
        BackendError: there is no such engine; the message has the command that builds it.
    """
    identity = {
        **graph_identity(bundle, bundle.graph(variant, role)),
        "flavour": vendor.flavour.value,
        "platform": sysconfig.get_platform(),
    }
    capacity = None if role is GraphRole.ENCODER else bundle.manifest.capacity
    settings = {**SETTINGS, "feeds_itself": capacity}
    candidates = [
        (_specificity(engine.record.shaped_by, vendor), engine.used_at, engine.key)
        for engine in list_engines(cache)
        if engine.record is not None
        and engine.damage is None
        and _contains(engine.record.shaped_by, identity)
        and _contains(engine.record.shaped_by.get("settings"), settings)
        and version_mismatch(engine.record.shaped_by, vendor.version) is None
        and gpu_mismatch(engine.record.shaped_by, gpu) is None
    ]
    if not candidates:
        raise BackendError(
            f"no engine of {variant}/{role.value} for {gpu.name} (compute capability "
            f"{gpu.capability}) by {vendor.flavour.value} {vendor.version} is in {cache.folder}; "
            f"build it: hybrid-deploy build {bundle.folder} --target local --variant {variant}"
        )
    return cache.folder / max(candidates)[2] / PLAN_FILE


def _contains(recorded: object, expected: Mapping[str, object]) -> bool:
    return isinstance(recorded, Mapping) and all(
        name in recorded and recorded[name] == value for name, value in expected.items()
    )


def _specificity(shaped_by: Mapping[str, object], vendor: TensorRT) -> tuple[int, bool]:
    """Ranks engines: for this GPU, for its compute capability, for any; by this TensorRT first."""
    target = parse_target(str(shaped_by["target"]))
    rank = 2 if shaped_by["gpu"] is not None else 0 if target.capability is None else 1
    return rank, shaped_by["version"] == vendor.version

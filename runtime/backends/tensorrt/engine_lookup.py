"""Finds the engines that `hybrid-deploy build` made for the GPU of this machine."""

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
    """Returns the plan of a graph: the one built for this very GPU, of several the last used.

    That a build found an engine is a use, so the last build counts. Any profile and workspace will
    do. Read it with `engine_cache.read_plan`, which checks it.

    Raises:
        BackendError: there is none; the message has the command that builds it.
    """
    wanted = {
        **graph_identity(bundle, bundle.graph(variant, role)),
        "flavour": vendor.flavour.value,
        "platform": sysconfig.get_platform(),
    }
    capacity = None if role is GraphRole.ENCODER else bundle.manifest.capacity
    settings = {**SETTINGS, "feeds_itself": capacity}
    found = [
        (_nearness(engine.record.shaped_by, vendor), engine.used_at, engine.key)
        for engine in list_engines(cache)
        if engine.record is not None
        and engine.damage is None
        and _has(engine.record.shaped_by, wanted)
        and _has(engine.record.shaped_by.get("settings"), settings)
        and version_mismatch(engine.record.shaped_by, vendor.version) is None
        and gpu_mismatch(engine.record.shaped_by, gpu) is None
    ]
    if not found:
        raise BackendError(
            f"no engine of {variant}/{role.value} for {gpu.name} (compute capability "
            f"{gpu.capability}) by {vendor.flavour.value} {vendor.version} is in {cache.folder}; "
            f"build it: hybrid-deploy build {bundle.folder} --target local --variant {variant}"
        )
    return cache.folder / max(found)[2] / PLAN_FILE


def _has(known: object, wanted: Mapping[str, object]) -> bool:
    return isinstance(known, Mapping) and all(
        name in known and known[name] == value for name, value in wanted.items()
    )


def _nearness(shaped_by: Mapping[str, object], vendor: TensorRT) -> tuple[int, bool]:
    """Ranks engines that run here: built for this GPU, for its kind, for all; by this TensorRT."""
    target = parse_target(str(shaped_by["target"]))
    narrow = 2 if shaped_by["gpu"] is not None else 0 if target.capability is None else 1
    return narrow, shaped_by["version"] == vendor.version

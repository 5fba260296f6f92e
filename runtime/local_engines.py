"""Finds the engines that `hybrid-deploy build` made for the GPU of this machine."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from hybrid_deploy.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.cached_engines import CachedEngine, list_engines
from hybrid_deploy.runtime.engine import graph_identity
from hybrid_deploy.runtime.engine_cache import PLAN_FILE, EngineCache
from hybrid_deploy.runtime.engine_plan import SETTINGS
from hybrid_deploy.runtime.local_gpu import LocalGpu
from hybrid_deploy.runtime.tensorrt_module import TensorRT
from hybrid_deploy.target import Flavour

_EVERY_GPU_FROM = 80


def find_engine(
    cache: EngineCache,
    bundle: Bundle,
    variant: str,
    role: GraphRole,
    vendor: TensorRT,
    gpu: LocalGpu,
) -> Path:
    """Gives the plan of a graph: the one built for this very GPU, of several the newest.

    Any profile and workspace will do. Read it with `engine_cache.read_plan`, which checks it.

    Raises:
        BackendError: there is none; the message has the command that builds it.
    """
    wanted = {
        **graph_identity(bundle, bundle.graph(variant, role)),
        "flavour": vendor.flavour.value,
        "version": vendor.version,
        "platform": sysconfig.get_platform(),
    }
    found = [
        (fit, engine.built_at, engine.key)
        for engine in list_engines(cache)
        if engine.damage is None and (fit := _fit(engine, wanted, gpu)) > 0
    ]
    if not found:
        raise BackendError(
            f"no engine of {variant}/{role.value} for {gpu.name} (compute capability "
            f"{gpu.capability}) by {vendor.flavour.value} {vendor.version} is in {cache.folder}; "
            f"build it: hybrid-deploy build {bundle.folder} --target local --variant {variant}"
        )
    return cache.folder / max(found)[2] / PLAN_FILE


def _fit(engine: CachedEngine, wanted: dict[str, object], gpu: LocalGpu) -> int:
    """Says how well an engine suits a GPU: 3 is built for it, 0 does not run there."""
    assert engine.record is not None
    shaped_by = engine.record.shaped_by
    settings = shaped_by.get("settings")
    if any(shaped_by.get(name) != value for name, value in wanted.items()):
        return 0
    if not isinstance(settings, dict) or any(settings.get(k) != v for k, v in SETTINGS.items()):
        return 0
    capability, target = gpu.capability.replace(".", ""), shaped_by.get("target")
    if shaped_by.get("gpu") is not None:
        return 3 if shaped_by["gpu"] == [gpu.name, gpu.capability] else 0
    if target == f"{Flavour.RTX.value}:sm_{capability}":
        return 2
    everywhere = target == f"{Flavour.RTX.value}:any" and int(capability) >= _EVERY_GPU_FROM
    return 1 if everywhere else 0

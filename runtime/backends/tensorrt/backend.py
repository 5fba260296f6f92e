"""Loads the engines of a variant that were built for TensorRT or TensorRT-RTX on this GPU."""

from __future__ import annotations

from pathlib import Path

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.runtime.backends.gpu.backend import STEPS, DeviceBackend
from hybrid_deploy.runtime.backends.gpu.device import Device
from hybrid_deploy.runtime.backends.gpu.engine_set import load_engine_set
from hybrid_deploy.runtime.backends.gpu.open_gpu import (
    open_gpu,
    refuse_approximate_logits,
    required_gpu,
)
from hybrid_deploy.runtime.backends.registry import BackendOptions
from hybrid_deploy.runtime.backends.tensorrt.engine import TensorRTEngine
from hybrid_deploy.runtime.backends.tensorrt.engine_lookup import find_engine
from hybrid_deploy.runtime.engines.cache import EngineCache, read_plan, read_record
from hybrid_deploy.runtime.engines.compatibility import is_version_compatible
from hybrid_deploy.runtime.host.local_gpu import LocalGpu
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import TensorRT, load_tensorrt
from hybrid_deploy.target import Flavour

NAME = "tensorrt"
_PRODUCTS = {Flavour.TENSORRT: "TensorRT", Flavour.RTX: "TensorRT-RTX"}


def load(bundle: Bundle, variant: str, options: BackendOptions) -> DeviceBackend:
    """Loads the engines of one variant; `options` concern the CPU and have no effect here.

    The flavour is the first one that is installed, `tensorrt` before `tensorrt-rtx`; `build
    --target local` chooses the same.

    Raises:
        MissingDependencyError: neither flavour is installed, or cuda-core is missing.
        BackendError: there is no GPU, no engine for it, or TensorRT cannot load an engine.
        BuildError: an engine file has changed since it was built.
        UsageError: the variant has approximate logits, which only a CPU backend refines.
    """
    return load_on(open_gpu(NAME), bundle, variant)


def load_on(
    device: Device,
    bundle: Bundle,
    variant: str,
    *,
    cache: EngineCache | None = None,
    steps: int = STEPS,
) -> DeviceBackend:
    """Loads the engines of one variant on an opened device.

    Args:
        device: the opened device.
        bundle: the bundle.
        variant: name of the variant.
        cache: the engine cache; None takes the default folder.
        steps: number of tokens of a block.

    Raises:
        MissingDependencyError: neither flavour of TensorRT is installed.
        BackendError: there is no GPU, no engine for it, or TensorRT cannot load one.
        BuildError: an engine file has changed since it was built.
        UsageError: the variant has approximate logits, which only a CPU backend refines.
    """
    refuse_approximate_logits(NAME, bundle, variant)
    gpu, vendor, cache = required_gpu(NAME), load_tensorrt(None), cache or EngineCache()
    engines = {}
    for role in bundle.loop_graphs(variant):
        path = find_engine(cache, bundle, variant, role, vendor, gpu)
        engines[role] = _load_engine(path, f"{variant}/{role.value}", vendor, gpu, device)
    engine_set = load_engine_set(
        engines[GraphRole.ENCODER],
        engines[GraphRole.STEP],
        engines.get(GraphRole.PREFILL),
        bundle.manifest.capacity,
    )
    encoder = bundle.graph(variant, GraphRole.ENCODER)
    version = f"{_PRODUCTS[vendor.flavour]} {vendor.version}"
    return DeviceBackend(NAME, version, device, engine_set, encoder, steps)


def _load_engine(
    path: Path, name: str, vendor: TensorRT, gpu: LocalGpu, device: Device
) -> TensorRTEngine:
    """Loads an engine; its record is checked first, as loading runs its native code."""
    plan = read_plan(path, vendor.version, flavour=vendor.flavour, gpu=gpu)
    compatible = is_version_compatible(read_record(path.parent).shaped_by)
    return TensorRTEngine(vendor, plan, name, device, version_compatible=compatible)

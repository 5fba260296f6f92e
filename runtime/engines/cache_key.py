"""What an engine is the engine of: the description whose hash is its key in the cache."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import msgspec

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import FileRecord, GraphSpec
from hybrid_deploy.runtime.host.local_gpu import LocalGpu
from hybrid_deploy.runtime.tensorrt_builder.compile import SETTINGS, PlanRequest
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import TensorRT


def shaped_by(
    bundle: Bundle, spec: GraphSpec, request: PlanRequest, vendor: TensorRT, gpu: LocalGpu | None
) -> dict[str, object]:
    """Describes everything that an engine depends on, as JSON types: the cache's key.

    Args:
        bundle: That the graph is from.
        spec: The graph.
        request: What to compile.
        vendor: The TensorRT that compiles.
        gpu: That it compiles for, where that is this machine's.
    """
    any_model = request.options.hardware_compatible
    return {
        **graph_identity(bundle, spec),
        "flavour": vendor.flavour.value,
        "version": vendor.version,
        "platform": sysconfig.get_platform(),
        "target": request.target,
        "gpu": None if gpu is None or any_model else [gpu.name, gpu.capability],
        "profile": msgspec.json.decode(msgspec.json.encode(request.profile)),
        "settings": {**SETTINGS, **request.options.shaping(), "feeds_itself": request.capacity},
    }


def graph_identity(bundle: Bundle, spec: GraphSpec) -> dict[str, object]:
    """Returns what of an engine's key says which graph it is: the hashes of its files."""
    weights = {file: record.sha256 for file, record in _weight_files(bundle, spec).items()}
    return {"graph": bundle.manifest.files[spec.file].sha256, "weights": weights}


def weight_bytes(bundle: Bundle, spec: GraphSpec) -> int:
    """Returns the size of a graph and of the data beside it."""
    files = [bundle.manifest.files[spec.file], *_weight_files(bundle, spec).values()]
    return sum(record.size_bytes for record in files)


def _weight_files(bundle: Bundle, spec: GraphSpec) -> dict[str, FileRecord]:
    """Returns all data beside a graph: which of it the graph reads, only ONNX could tell."""
    folder = Path(spec.file).parent
    return {
        file: record
        for file, record in bundle.manifest.files.items()
        if folder in Path(file).parents and Path(file).suffix != ".onnx"
    }

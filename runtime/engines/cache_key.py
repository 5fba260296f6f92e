"""Describes everything that an engine depends on; the hash of that is its key in the cache."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import FileRecord, GraphSpec
from hybrid_deploy.errors import BuildError
from hybrid_deploy.runtime.host.local_gpu import LocalGpu
from hybrid_deploy.runtime.tensorrt_builder.compile import SETTINGS, PlanRequest
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import TensorRT
from hybrid_deploy.scratch import scratch_folder


def shaped_by(
    bundle: Bundle, spec: GraphSpec, request: PlanRequest, vendor: TensorRT, gpu: LocalGpu | None
) -> dict[str, object]:
    """Returns everything that an engine depends on, as JSON types: the `shaped_by` of its record.

    Args:
        bundle: bundle of the graph.
        spec: the graph.
        request: request of the build.
        vendor: the TensorRT that builds the engine.
        gpu: GPU of this machine, for the target `local`; None for every other target.
    """
    any_gpu_model = request.options.hardware_compatible
    return {
        **graph_identity(bundle, spec),
        "flavour": vendor.flavour.value,
        "version": vendor.version,
        "platform": sysconfig.get_platform(),
        "target": request.target,
        "gpu": None if gpu is None or any_gpu_model else [gpu.name, gpu.capability],
        "profile": msgspec.json.decode(msgspec.json.encode(request.optimization_profile)),
        "settings": {**SETTINGS, **request.options.shaping(), "feeds_itself": request.capacity},
    }


def graph_identity(bundle: Bundle, spec: GraphSpec) -> dict[str, object]:
    """Returns the part of `shaped_by` that identifies the graph: the hashes of its files."""
    weights = {file: record.sha256 for file, record in _weight_files(bundle, spec).items()}
    return {"graph": bundle.manifest.files[spec.file].sha256, "weights": weights}


def weight_bytes(bundle: Bundle, spec: GraphSpec) -> int:
    """Returns the size of a graph's ONNX file and of its weight files, in bytes."""
    files = [bundle.manifest.files[spec.file], *_weight_files(bundle, spec).values()]
    return sum(record.size_bytes for record in files)


@contextmanager
def verified_copy(bundle: Bundle, spec: GraphSpec) -> Iterator[Path]:
    """Yields the path of a copy of a graph, with its weight files beside it.

    The hashes of the copied bytes are those in the key: an engine that was built from other files
    would be used for these ones. The copy is not in RAM, which the build needs.

    Raises:
        BundleError: a file of the bundle is missing or has changed.
        BuildError: there is no room for the copy.
    """
    files = [spec.file, *_weight_files(bundle, spec)]
    with scratch_folder("graphs") as folder:
        for name in files:
            try:
                with closing(bundle.open_file(name)) as file:
                    file.copy_to(Path(folder, Path(name).name))
            except OSError as error:
                raise BuildError(
                    f"{bundle.folder / name} cannot be copied to {folder}: {error.strerror}; make "
                    "room there, or name another folder in $TMPDIR"
                ) from error
        yield Path(folder, Path(spec.file).name)


def _weight_files(bundle: Bundle, spec: GraphSpec) -> dict[str, FileRecord]:
    """Returns all data files beside a graph; without ONNX, which of them it reads is unknown."""
    folder = Path(spec.file).parent
    return {
        file: record
        for file, record in bundle.manifest.files.items()
        if folder in Path(file).parents and Path(file).suffix != ".onnx"
    }

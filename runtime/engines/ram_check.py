"""Refuses a build that does not fit into RAM, before the system kills it or another process."""

from __future__ import annotations

import resource

from hybrid_deploy.errors import BuildError
from hybrid_deploy.runtime.engines.cache import PlanRecord
from hybrid_deploy.runtime.host.free_ram import free_ram_bytes

_BASE_BYTES = 250_000_000
_COPIES = 3
"""Copies of the weights that a build holds in RAM, beside `_BASE_BYTES`.

TensorRT-RTX 1.7 took 0.26 to 0.31 GB of RAM for weights of 2 MB, and 1.8 GB for 0.54 GB.
"""

_MAPPED_BYTES = 500_000_000
"""Additional address space for libraries and stacks; 443 MB with TensorRT-RTX 1.7."""

_BYTES_PER_GB = 1e9


def check_build_fits(
    graph: str, weight_bytes: int, workspace_bytes: int | None, last: PlanRecord | None
) -> None:
    """Compares the RAM that a build needs with the free RAM.

    Args:
        graph: name of the graph, for the message.
        weight_bytes: size of the graph's ONNX file and weight files.
        workspace_bytes: scratch buffers of the GPU, which lie in RAM on a Jetson; None without a
            GPU.
        last: record of the last build of the same graph; its RAM replaces the estimate.

    Raises:
        BuildError: the build does not fit into the free RAM or the allowed address space.
    """
    free_bytes = free_ram_bytes()
    needed_bytes = needed_ram_bytes(weight_bytes, workspace_bytes, last)
    _check_address_space(graph, needed_bytes + _MAPPED_BYTES)
    if free_bytes is not None and needed_bytes > free_bytes:
        raise BuildError(
            f"{graph}: building it takes about {_gb(needed_bytes)} of memory and {_gb(free_bytes)} "
            "are free; close other programs, lower --workspace, or build on a larger machine"
        )


def _check_address_space(graph: str, needed_bytes: int) -> None:
    """Refuses a limit of the address space that a build exceeds: TensorRT would fail or hang."""
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit_bytes != resource.RLIM_INFINITY and limit_bytes < needed_bytes:
        raise BuildError(
            f"{graph}: building it takes about {_gb(needed_bytes)} of address space and this "
            f"shell allows {_gb(limit_bytes)}; raise that with: ulimit -v unlimited"
        )


def needed_ram_bytes(
    weight_bytes: int, workspace_bytes: int | None, last: PlanRecord | None
) -> int:
    """Returns the RAM of the last build, else an estimate; arguments as in `check_build_fits`."""
    if last is not None and last.peak_bytes is not None:
        return last.peak_bytes
    return _BASE_BYTES + _COPIES * weight_bytes + (workspace_bytes or 0)


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / _BYTES_PER_GB:.1f} GB"

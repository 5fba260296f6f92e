"""Refuses a build that cannot fit into memory, before the system kills it or something else."""

from __future__ import annotations

from hybrid_deploy.errors import BuildError
from hybrid_deploy.runtime.engine_cache import PlanRecord
from hybrid_deploy.runtime.free_memory import free_memory_bytes

_BASE_BYTES = 250_000_000
_COPIES = 3
"""Builds with TensorRT-RTX 1.7 took 0.26 to 0.31 GB for weights of 2 MB, 1.8 GB for 0.54 GB."""

_BYTES_PER_GB = 1e9


def check_memory(
    graph: str, weight_bytes: int, workspace_bytes: int | None, last: PlanRecord | None
) -> None:
    """Compares what a build needs with what is free.

    Args:
        graph: Names the graph in the message.
        weight_bytes: Its weights and the graph itself.
        workspace_bytes: Scratch memory of a GPU that shares this memory, as on Jetson.
        last: The last build of the same graph; what it took is better than any estimate.

    Raises:
        BuildError: the build cannot fit.
    """
    free_bytes = free_memory_bytes()
    needed_bytes = needed_memory_bytes(weight_bytes, workspace_bytes, last)
    if free_bytes is not None and needed_bytes > free_bytes:
        raise BuildError(
            f"{graph}: building it takes about {_gb(needed_bytes)} of memory and {_gb(free_bytes)} "
            "are free; close other programs, lower --workspace, or build on a larger machine"
        )


def needed_memory_bytes(
    weight_bytes: int, workspace_bytes: int | None, last: PlanRecord | None
) -> int:
    """Estimates what a build takes; the arguments are those of `check_memory`."""
    if last is not None and last.peak_bytes is not None:
        return last.peak_bytes
    return _BASE_BYTES + _COPIES * weight_bytes + (workspace_bytes or 0)


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / _BYTES_PER_GB:.1f} GB"

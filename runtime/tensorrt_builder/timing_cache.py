"""Stores the kernel times that TensorRT measured, so that later builds measure fewer kernels.

Each version of TensorRT and each GPU has one file, beside the engines. TensorRT chooses kernels by
these times, and itself refuses a file of another version or GPU. TensorRT-RTX gets no timing cache:
its builder measures nothing, and with one it would look for a GPU.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from hybrid_deploy.bundle.atomic_write import write_file
from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.runtime.host.local_gpu import LocalGpu
from hybrid_deploy.target import Flavour


def timing_cache_file(
    folder: Path, flavour: Flavour, version: str, gpu: LocalGpu | None
) -> Path | None:
    """Returns the timing cache in the folder of engines; None for TensorRT-RTX or without a GPU."""
    if flavour is Flavour.RTX or gpu is None:
        return None
    gpu_name = re.sub(r"\W+", "-", gpu.name).strip("-")
    return folder / f"timing-{version}-{gpu_name}-{gpu.capability}.cache"


def attach(config: Any, file: Path) -> object:
    """Sets the timing cache of an `IBuilderConfig` from a file, or an empty one if it is unusable.

    Returns:
        The `ITimingCache`, which the caller must hold until the engine is built; None if TensorRT
        takes no timing cache.
    """
    for content in (_content(file), b""):
        times = config.create_timing_cache(content)
        if times is not None and config.set_timing_cache(times, ignore_mismatch=False):
            return times
    return None


def save(config: Any, file: Path) -> None:
    """Writes the times of an `IBuilderConfig` to a file after a build.

    A failed write is no error: later builds measure the kernels again. If two builds write at the
    same time, the file of the later one stays.
    """
    times = config.get_timing_cache()
    if times is not None:
        with suppress(HybridDeployError, OSError):
            write_file(file, bytes(times.serialize()))


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""

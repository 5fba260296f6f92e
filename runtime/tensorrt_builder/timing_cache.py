"""Keeps the times of kernels that TensorRT measured, so that later builds measure fewer.

One file for each version and GPU, beside the engines. TensorRT chooses kernels by these times; it
checks for itself that they are its own. Never with TensorRT-RTX: its builder measures nothing, and
a timing cache would only make it look for a GPU.
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
    """Returns the file in the folder of engines; None where a timing cache would do nothing."""
    if flavour is Flavour.RTX or gpu is None:
        return None
    gpu_name = re.sub(r"\W+", "-", gpu.name).strip("-")
    return folder / f"timing-{version}-{gpu_name}-{gpu.capability}.cache"


def attach(config: Any, file: Path) -> object:
    """Returns an `IBuilderConfig` the times in a file; without a usable one it starts with none.

    Returns:
        What must live until the engine is built.
    """
    for content in (_content(file), b""):
        times = config.create_timing_cache(content)
        if times is not None and config.set_timing_cache(times, ignore_mismatch=False):
            return times
    return None


def keep(config: Any, file: Path) -> None:
    """Writes the times back after a build; what cannot be written is measured again.

    Of two builds that end together the later one's times stay.
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

"""Whether an engine can run here, told by its record: before its native code is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hybrid_deploy.runtime.host.local_gpu import LocalGpu
from hybrid_deploy.target import Flavour, parse_target

_AMPERE = 80


def version_mismatch(shaped_by: Mapping[str, Any], version: str) -> str | None:
    """Says why the TensorRT of that version cannot load an engine; None if it can.

    An engine runs with the version that built it; a version-compatible one with later ones, too.

    Args:
        shaped_by: Of the engine's record.
        version: Of the TensorRT that is going to load it.
    """
    made_by = str(shaped_by.get("version"))
    if made_by == version:
        return None
    if is_version_compatible(shaped_by) and _numbers(version) > _numbers(made_by):
        return None
    return f"was made by TensorRT {made_by}, {version} is installed; build it again"


def flavour_mismatch(shaped_by: Mapping[str, Any], flavour: Flavour) -> str | None:
    """Says why that product cannot load an engine; None if it can."""
    made_by = Flavour(str(shaped_by.get("flavour")))
    if made_by is flavour:
        return None
    return f"was made by {made_by.product}, this is {flavour.product}; build it for that"


def gpu_mismatch(shaped_by: Mapping[str, Any], gpu: LocalGpu) -> str | None:
    """Says why an engine cannot run on a GPU; None if it can.

    Args:
        shaped_by: Of the engine's record.
        gpu: That is going to run it.
    """
    target, capability = parse_target(str(shaped_by.get("target"))), _number(gpu.capability)
    if target.capability is not None:
        built_for, fits = target.device, capability == int(target.capability)
    elif target.is_local and not _setting(shaped_by, "hardware_compatible"):
        name, its = shaped_by["gpu"]
        built_for, fits = f"{name} (sm_{_number(its)})", (name, its) == (gpu.name, gpu.capability)
    else:
        built_for, fits = f"GPUs from Ampere (sm_{_AMPERE}) on", capability >= _AMPERE
    here = f"{gpu.name} (sm_{capability})"
    return None if fits else f"was built for {built_for} and this GPU is {here}; build it again"


def is_version_compatible(shaped_by: Mapping[str, Any]) -> bool:
    """Returns whether an engine brings its own runtime, which the loader must allow.

    Before deserializing set `engine_host_code_allowed` of TensorRT's `Runtime`.
    """
    return _setting(shaped_by, "version_compatible")


def _setting(shaped_by: Mapping[str, Any], name: str) -> bool:
    settings = shaped_by.get("settings")
    return bool(settings.get(name)) if isinstance(settings, Mapping) else False


def _number(capability: str) -> int:
    return int(capability.replace(".", ""))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))

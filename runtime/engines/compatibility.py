"""Decides from the record of an engine whether it can run here, before its code is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hybrid_deploy.runtime.host.local_gpu import LocalGpu
from hybrid_deploy.target import Flavour, parse_target

_AMPERE = 80


def version_mismatch(shaped_by: Mapping[str, Any], version: str) -> str | None:
    """Returns the reason why a version of TensorRT cannot load an engine; None if it can.

    An engine runs with the version that built it; a version-compatible one also with later ones.

    Args:
        shaped_by: `shaped_by` of the engine's record.
        version: version of the TensorRT that will load the engine.
    """
    builder_version = str(shaped_by.get("version"))
    if builder_version == version:
        return None
    if is_version_compatible(shaped_by) and _numbers(version) > _numbers(builder_version):
        return None
    return f"was made by TensorRT {builder_version}, {version} is installed; build it again"


def flavour_mismatch(shaped_by: Mapping[str, Any], flavour: Flavour) -> str | None:
    """Returns the reason why a flavour of TensorRT cannot load an engine; None if it can."""
    builder_flavour = Flavour(str(shaped_by.get("flavour")))
    if builder_flavour is flavour:
        return None
    return f"was made by {builder_flavour.product}, this is {flavour.product}; build it for that"


def gpu_mismatch(shaped_by: Mapping[str, Any], gpu: LocalGpu) -> str | None:
    """Returns the reason why an engine cannot run on a GPU; None if it can.

    Args:
        shaped_by: `shaped_by` of the engine's record.
        gpu: GPU that will run the engine.
    """
    target, capability = parse_target(str(shaped_by.get("target"))), _number(gpu.capability)
    if target.capability is not None:
        built_for, fits = target.device, capability == int(target.capability)
    elif target.is_local and not _setting(shaped_by, "hardware_compatible"):
        name, capability_text = shaped_by["gpu"]
        built_for = f"{name} (sm_{_number(capability_text)})"
        fits = (name, capability_text) == (gpu.name, gpu.capability)
    else:
        built_for, fits = f"GPUs from Ampere (sm_{_AMPERE}) on", capability >= _AMPERE
    here = f"{gpu.name} (sm_{capability})"
    return None if fits else f"was built for {built_for} and this GPU is {here}; build it again"


def is_version_compatible(shaped_by: Mapping[str, Any]) -> bool:
    """Returns whether an engine contains its own runtime.

    Its loader must set `engine_host_code_allowed` of TensorRT's `Runtime` before it deserializes
    such an engine.
    """
    return _setting(shaped_by, "version_compatible")


def _setting(shaped_by: Mapping[str, Any], name: str) -> bool:
    settings = shaped_by.get("settings")
    return bool(settings.get(name)) if isinstance(settings, Mapping) else False


def _number(capability: str) -> int:
    return int(capability.replace(".", ""))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))

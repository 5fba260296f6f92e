"""Engines that must not be loaded here, recognised by their records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybrid_deploy.errors import BuildError
from hybrid_deploy.runtime.engines.cache import PLAN_FILE, BuiltPlan, EngineCache, read_plan
from hybrid_deploy.runtime.engines.compatibility import (
    flavour_mismatch,
    gpu_mismatch,
    is_version_compatible,
    version_mismatch,
)
from hybrid_deploy.runtime.host.local_gpu import LocalGpu
from hybrid_deploy.target import Flavour

ADA = LocalGpu("NVIDIA L4", "8.9")
TURING = LocalGpu("Tesla T4", "7.5")
ORIN = LocalGpu("Orin", "8.7")


def shaped_by(target: str, gpu: LocalGpu | None = None, **settings: object) -> dict[str, Any]:
    return {
        "flavour": "rtx" if target.startswith("rtx") else "tensorrt",
        "version": "10.16.1",
        "target": target,
        "gpu": [gpu.name, gpu.capability] if gpu else None,
        "settings": settings,
    }


@pytest.mark.parametrize(
    ("record", "gpu"),
    [
        (shaped_by("rtx:sm_89"), ADA),
        (shaped_by("rtx:any"), ADA),
        (shaped_by("local", ORIN), ORIN),
        (shaped_by("local", hardware_compatible=True), ADA),
    ],
)
def test_engine_runs_where_it_was_built_for(record: dict[str, Any], gpu: LocalGpu) -> None:
    assert gpu_mismatch(record, gpu) is None


@pytest.mark.parametrize(
    ("record", "gpu", "built_for", "here"),
    [
        (shaped_by("rtx:sm_86"), ADA, "sm_86", "NVIDIA L4 (sm_89)"),
        (shaped_by("rtx:any"), TURING, "GPUs from Ampere (sm_80) on", "Tesla T4 (sm_75)"),
        (shaped_by("local", ORIN), ADA, "Orin (sm_87)", "NVIDIA L4 (sm_89)"),
        (shaped_by("local", LocalGpu("L40", "8.9")), ADA, "L40 (sm_89)", "NVIDIA L4 (sm_89)"),
        (
            shaped_by("local", hardware_compatible=True),
            TURING,
            "GPUs from Ampere (sm_80) on",
            "Tesla T4 (sm_75)",
        ),
    ],
)
def test_engine_of_another_gpu(
    record: dict[str, Any], gpu: LocalGpu, built_for: str, here: str
) -> None:
    assert gpu_mismatch(record, gpu) == (
        f"was built for {built_for} and this GPU is {here}; build it again"
    )


def test_engine_of_another_version() -> None:
    record = shaped_by("local", ORIN)
    assert version_mismatch(record, "10.16.1") is None
    assert version_mismatch(record, "11.4.1") == (
        "was made by TensorRT 10.16.1, 11.4.1 is installed; build it again"
    )
    assert not is_version_compatible(record)


@pytest.mark.parametrize(("version", "fits"), [("10.17", True), ("11.4.1", True), ("10.3", False)])
def test_compatible_engine_runs_with_later_versions_only(version: str, fits: bool) -> None:
    record = shaped_by("local", ORIN, version_compatible=True)
    assert is_version_compatible(record)
    assert (version_mismatch(record, version) is None) is fits


def test_engine_of_the_other_product() -> None:
    assert flavour_mismatch(shaped_by("rtx:any"), Flavour.RTX) is None
    assert flavour_mismatch(shaped_by("rtx:any"), Flavour.TENSORRT) == (
        "was made by TensorRT-RTX, this is TensorRT; build it for that"
    )


def test_foreign_engine_is_refused_before_its_plan_is_read(tmp_path: Path) -> None:
    record = shaped_by("rtx:sm_86")
    cached = EngineCache(tmp_path).get_or_build(record, lambda: BuiltPlan(b"native code", 1.0))
    assert read_plan(cached.path, "10.16.1", flavour=Flavour.RTX) == b"native code"
    (cached.path.parent / PLAN_FILE).unlink()  # reading the plan would raise another error
    with pytest.raises(BuildError) as caught:
        read_plan(cached.path, "10.16.1", flavour=Flavour.RTX, gpu=ADA)
    assert str(caught.value) == (
        f"cached engine {cached.path.parent} was built for sm_86 and this GPU is NVIDIA L4 "
        "(sm_89); build it again"
    )

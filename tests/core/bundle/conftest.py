"""Fixtures of installed bundles."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from hybrid_deploy.bundle.bundle import open_bundle, seal_bundle


@pytest.fixture
def slots(tmp_path: Path) -> Path:
    return tmp_path / "slots"


@pytest.fixture
def bundles(own_path: Path, tmp_path: Path) -> list[Path]:
    """Three bundles that differ in the number of parameters that they state: 0, 1 and 2."""
    made = []
    for number in range(3):
        folder = Path(shutil.copytree(own_path, tmp_path / f"{number}.bundle"))
        manifest = open_bundle(folder).manifest
        seal_bundle(folder, msgspec.structs.replace(manifest, parameters=number))
        made.append(folder)
    return made

"""What the tests of installed bundles share: health tests, and what lies in the slots."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.bundle.release_record import RECORD_FILE
from hybrid_deploy.errors import BundleError


def healthy(path: Path) -> None:
    """Accepts a bundle that opens."""
    open_bundle(path)


def sick(path: Path) -> NoReturn:
    raise BundleError("other tokens on this device")


def current(slots: Path) -> int:
    return open_bundle(slots / "current").manifest.parameters


def contents(slots: Path) -> set[str]:
    """Returns the names in the slots, without the record that must be among them."""
    names = {path.name for path in slots.iterdir()}
    assert RECORD_FILE in names
    return names - {RECORD_FILE}


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

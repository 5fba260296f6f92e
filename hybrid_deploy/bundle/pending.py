"""The folders of a bundle that a killed process may have left, noted before they are made.

A variant's folder comes before the manifest that lists it, and a replaced variant's folder goes
after. Between, a note in the bundle names both. Whoever writes next removes those of them that the
manifest does not list, and nothing else.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from hybrid_deploy.bundle.atomic_write import remove_temporary, write_file
from hybrid_deploy.bundle.manifest import Manifest
from hybrid_deploy.bundle.paths import is_variant_name, top_folder

PENDING_FILE = ".pending.json"


def note(folder: Path, homes: list[str]) -> None:
    """Notes the names of the folders that are about to change; the caller holds the lock."""
    write_file(folder / PENDING_FILE, msgspec.json.encode(homes))


def forget(folder: Path) -> None:
    """Removes the note, when the manifest and the folders agree."""
    (folder / PENDING_FILE).unlink(missing_ok=True)


def clean(folder: Path, manifest: Manifest) -> None:
    """Removes what killed processes left in a bundle; the caller holds the lock."""
    remove_temporary(folder)
    try:
        homes = msgspec.json.decode((folder / PENDING_FILE).read_bytes(), type=list[str])
    except (OSError, msgspec.MsgspecError):
        homes = []
    listed = {top_folder(name) for name in manifest.files}
    for home in homes:
        path = folder / home
        if is_variant_name(home) and home not in listed and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
    forget(folder)

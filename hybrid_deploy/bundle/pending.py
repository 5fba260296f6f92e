"""The folders of a bundle that a killed process may have left, marked before they are made.

A variant's folder comes before the manifest that lists it, and a replaced variant's folder goes
after. Between, a file of ours in each of them marks it. Whoever writes next removes the marked
folders that the manifest does not list, and nothing else: a folder of the user has no such file,
whatever a bundle of somebody else says about it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hybrid_deploy.bundle.atomic_write import remove_temporary
from hybrid_deploy.bundle.manifest import Manifest
from hybrid_deploy.bundle.paths import is_variant_name, top_folder

MARK_FILE = ".hybrid-deploy-pending"
"""File in a folder of a variant that the manifest does not list yet, or no longer."""

OLD_NOTE_FILE = ".pending.json"
"""File that earlier versions wrote to a bundle in place of the marks; it is not read any more."""


def mark(folder: Path) -> None:
    """Marks the folder of a variant that is about to be listed, or not to be listed any more."""
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    os.close(os.open(folder / MARK_FILE, flags, 0o666))


def is_marked(folder: Path) -> bool:
    """Returns whether a folder in a bundle is one that `mark` has marked."""
    mark_file = folder / MARK_FILE
    named = is_variant_name(folder.name) and not folder.is_symlink()
    return named and mark_file.is_file() and not mark_file.is_symlink()


def clean(folder: Path, manifest: Manifest) -> None:
    """Removes the marks in a bundle, and what killed processes left; the caller holds the lock."""
    remove_temporary(folder)
    listed = {top_folder(name) for name in manifest.files}
    for home in list(_marked(folder)):
        if home.name in listed:
            with suppress(OSError):
                (home / MARK_FILE).unlink()
        else:
            shutil.rmtree(home, ignore_errors=True)


def _marked(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if is_marked(path))

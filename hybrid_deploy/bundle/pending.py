"""The folders of a bundle that a killed process may have left, marked before they are made.

A variant's folder comes before the manifest that lists it, and a replaced variant's folder goes
after. Between, a file of ours in each of them marks it, and names the folder and the files that are
ours there. Whoever writes next removes these files from the marked folders that the manifest does
not list, and nothing else: a folder of the user has no such file, a copy of a marked folder has
another name, and what the user adds to a marked folder is not named there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from hybrid_deploy.bundle.atomic_write import remove_files, remove_temporary
from hybrid_deploy.bundle.bundle_file import read_small_file
from hybrid_deploy.bundle.manifest import Manifest
from hybrid_deploy.bundle.paths import is_inside, is_variant_name, top_folder
from hybrid_deploy.errors import BundleError

MARK_FILE = ".hybrid-deploy-pending"
"""File in a folder of a variant that the manifest does not list yet, or no longer."""

OLD_NOTE_FILE = ".pending.json"
"""File that earlier versions wrote to a bundle in place of the marks; it is not read any more."""

_MAX_MARK_BYTES = 1 << 20
_LOGGER = logging.getLogger(__name__)


class _Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of a mark: the name of the folder in the bundle, and the files in it."""

    folder: str
    files: list[str]


def mark(folder: Path, names: Collection[str], home: str | None = None) -> None:
    """Marks the folder of a variant that is about to be listed, or not to be listed any more.

    Args:
        folder: the folder.
        names: the files of the variant, relative to the folder.
        home: name that the folder has in the bundle; None if it has that name already.
    """
    content = msgspec.json.encode(_Mark(home or folder.name, sorted(names)))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(folder / MARK_FILE, flags, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def is_marked(folder: Path) -> bool:
    """Returns whether a folder in a bundle is one that `mark` has marked."""
    return _mark_in(folder) is not None


def marked_files(bundle: Path) -> set[str]:
    """Returns the marks in a bundle and the files that they name, relative to the bundle."""
    return {
        f"{home.name}/{name}" for home, names in _marked(bundle) for name in (MARK_FILE, *names)
    }


def clean(folder: Path, manifest: Manifest) -> None:
    """Removes the marks in a bundle, and what killed processes left; the caller holds the lock."""
    remove_temporary(folder)
    listed = {top_folder(name) for name in manifest.files}
    for home, names in list(_marked(folder)):
        if home.name in listed:
            with suppress(OSError):
                (home / MARK_FILE).unlink()
        else:
            _remove(home, names)


def _remove(home: Path, names: Collection[str]) -> None:
    """Removes the files that a mark names, and then the mark and the folder."""
    remove_files(home, names)
    if any(os.path.lexists(home / name) for name in names):
        return  # the next command tries again
    with suppress(OSError):
        (home / MARK_FILE).unlink()
        if any(home.iterdir()):
            _LOGGER.warning("%s stays, as it holds files that are of no variant", home)
        else:
            home.rmdir()


def _marked(bundle: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yields the marked folders in a bundle, each with the files that its mark names."""
    for home in bundle.iterdir():
        content = _mark_in(home)
        if content is not None:
            yield home, [name for name in content.files if is_inside(name)]


def _mark_in(home: Path) -> _Mark | None:
    """Returns the mark in a folder; None if it has none, or one of another folder."""
    if not is_variant_name(home.name) or home.is_symlink():
        return None
    try:
        content = read_small_file(home, MARK_FILE, _MAX_MARK_BYTES)
    except BundleError:
        return None
    try:
        found = msgspec.json.decode(content, type=_Mark)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _Mark(home.name, [])  # a kill came while it was written
    return found if found.folder == home.name else None

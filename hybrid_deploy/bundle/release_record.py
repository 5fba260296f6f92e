"""The record of `install` in the folder of the installed bundles: which folders there are its own.

    slots/
      .installed.json      {"made_by": "hybrid-deploy install", "releases": {"0007": "5f0c..."}}
      0007/.installed      5f0c...   the mark, which the record names too
      .0007.5f0c...        the same folder while it is written or removed

A folder is removed only if the record names it and its mark is inside, or its name has the mark,
and if it holds nothing but its bundle. So the record is written before a folder is made, and
whatever else lies in the slots stays. A release that holds something else is then forgotten, so
that no later command removes it either.

Whoever uses this module holds the lock of the slots.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from hybrid_deploy.bundle.atomic_write import (
    disk_errors,
    remove_files,
    remove_temporary,
    sync_tree,
    write_file,
)
from hybrid_deploy.bundle.bundle_file import read_small_file
from hybrid_deploy.bundle.manifest import Manifest, decode_manifest, read_manifest
from hybrid_deploy.bundle.paths import MANIFEST_FILE, check_paths
from hybrid_deploy.bundle.placement import sync_names
from hybrid_deploy.bundle.replacement import first_named, foreign, own_files
from hybrid_deploy.errors import BundleError, InputError

RECORD_FILE = ".installed.json"
"""File in the slots that names the folders that `install` made there."""

MARK_FILE = ".installed"
"""File in a release with the mark by which the record knows it."""

_MAX_RECORD_BYTES = 1 << 16
_RELEASE = re.compile(r"[0-9]{4,18}")
_MARK = re.compile(r"[0-9a-f]{16}")
_LOGGER = logging.getLogger(__name__)


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of the file: the mark of each release; None for one that is never removed."""

    made_by: Literal["hybrid-deploy install"]
    releases: dict[str, str | None]


class Releases:
    """The releases in the slots of a device that `install` made, and the current one.

    Args:
        slots: folder of the installed bundles.
        current: folder of the current bundle; None if there is none.

    Raises:
        InputError: the record is damaged, or is no file; without one, the current folder is none of
            a bundle.
    """

    def __init__(self, slots: Path, current: Path | None) -> None:
        self._slots = slots
        recorded = _read(slots)
        if recorded is None and current is not None and not (current / MANIFEST_FILE).is_file():
            raise InputError(f"{current} is no installed bundle; name another folder, or remove it")
        self._marks = recorded or {}
        if current is not None:
            self._marks.setdefault(current.name, None)
        self._mode = 0

    def before(self, release: Path) -> Path | None:
        """Returns the newest release that is older than another one; None if there is none."""
        older = [name for name in self._finished() if int(name) < int(release.name)]
        return self._slots / max(older, key=int) if older else None

    def save(self) -> None:
        """Writes the record.

        Raises:
            HybridDeployError: the disk is full or not writable.
        """
        record = _Record("hybrid-deploy install", self._marks)
        write_file(self._slots / RECORD_FILE, msgspec.json.encode(record))

    def begin(self) -> Path:
        """Notes a new release, and makes a folder for it that only this user can enter.

        Returns:
            The folder to write the bundle to; `finish` gives it its name.

        Raises:
            HybridDeployError: the disk is full or not writable.
        """
        name, mark = self._free_name(), secrets.token_hex(8)
        self._marks[name] = mark
        self.save()
        folder = self._hidden(name)
        with disk_errors(folder):
            folder.mkdir()
            self._mode = stat.S_IMODE(folder.stat().st_mode)
            folder.chmod(stat.S_IRWXU)  # what is copied here is not verified yet
            (folder / MARK_FILE).write_text(mark, encoding="ascii")
        return folder

    def finish(self, folder: Path) -> Path:
        """Flushes a new release to disk and gives it its name; returns its path.

        Raises:
            HybridDeployError: the disk is full or not writable.
        """
        release = self._slots / next(name for name in self._marks if self._hidden(name) == folder)
        with disk_errors(release):
            folder.chmod(self._mode)
            sync_tree(folder)
            folder.rename(release)
        sync_names(self._slots)
        return release

    def remove_newer(self, current: Path | None) -> set[Path]:
        """Removes what killed commands left, and the releases that were rolled back.

        Without a current release, nobody knows which ones were: all that are finished stay.

        Returns:
            The releases that stay.
        """
        kept = {
            self._slots / name
            for name in self._finished()
            if current is None or int(name) <= int(current.name)
        }
        self.keep_only(kept)
        return kept

    def keep_only(self, kept: Collection[Path | None]) -> None:
        """Removes the other releases that are its own, and forgets those that are not."""
        for name in list(self._marks):
            if self._slots / name not in kept:
                self._remove(name)

    def _remove(self, name: str) -> None:
        """Removes a release, under its hidden name so that a kill leaves no half of it."""
        release, hidden = self._slots / name, self._hidden(name)
        if os.path.lexists(release):
            if reason := self._reason_to_stay(name):
                self._leave(name, release, reason)
                return
            with suppress(OSError):
                release.rename(hidden)
        if os.path.lexists(hidden) and (reason := _other_content(hidden)):
            self._leave(name, hidden, reason)
            return
        _remove_bundle(hidden)
        if not (os.path.lexists(release) or os.path.lexists(hidden)):
            del self._marks[name]

    def _reason_to_stay(self, name: str) -> str | None:
        """Returns why a release is not removed; None if `install` made it, and all of it."""
        if not self._is_own(name):
            return "no record says that install made it"
        return _other_content(self._slots / name)

    def _leave(self, name: str, folder: Path, reason: str) -> None:
        """Forgets a release, so that no later command removes it either."""
        _LOGGER.warning("%s stays, as %s; remove it if you need the space", folder, reason)
        del self._marks[name]

    def _is_own(self, name: str) -> bool:
        """Returns whether a release has the mark that the record names."""
        mark = self._marks[name]
        return mark is not None and _mark_in(self._slots / name) == mark

    def _finished(self) -> list[str]:
        return [name for name in self._marks if (self._slots / name).is_dir()]

    def _free_name(self) -> str:
        """Returns the name after the newest release that nothing in the slots has."""
        number = max(map(int, self._marks), default=0) + 1
        while os.path.lexists(self._slots / f"{number:04d}"):
            number += 1
        return f"{number:04d}"

    def _hidden(self, name: str) -> Path:
        """Returns the path of a release while it is written or removed."""
        return self._slots / f".{name}.{self._marks[name]}"


def is_release_name(name: str) -> bool:
    """Returns whether a name can be that of a release: four digits or more."""
    return bool(_RELEASE.fullmatch(name))


def _read(slots: Path) -> dict[str, str | None] | None:
    """Returns the marks in the record; None if there is no record.

    Raises:
        InputError: the record is damaged, or is no file.
    """
    if not os.path.lexists(slots / RECORD_FILE):
        return None
    try:
        content = read_small_file(slots, RECORD_FILE, _MAX_RECORD_BYTES)
        marks = msgspec.json.decode(content, type=_Record).releases
    except BundleError as error:
        raise _damaged(slots, "it is a link, no file, or too large") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _damaged(slots, str(error)) from error
    if not all(_RELEASE.fullmatch(name) and _is_mark(mark) for name, mark in marks.items()):
        raise _damaged(slots, "it names what is no release")
    return marks


def _is_mark(mark: str | None) -> bool:
    return mark is None or bool(_MARK.fullmatch(mark))


def _damaged(slots: Path, reason: str) -> InputError:
    return InputError(
        f"{slots / RECORD_FILE} is no record of `install`: {reason}; remove that file, every "
        "folder then stays, also those that install made"
    )


def _mark_in(release: Path) -> str | None:
    """Returns the mark in a release; None if it has none, or is no folder."""
    if release.is_symlink():
        return None
    try:
        return read_small_file(release, MARK_FILE, _MAX_RECORD_BYTES).decode("ascii")
    except (BundleError, UnicodeDecodeError):
        return None


def _other_content(release: Path) -> str | None:
    """Returns what keeps a release from being removed; None if it holds nothing but its bundle."""
    try:
        found = first_named(foreign(release, _own_files(release)))
    except (BundleError, OSError) as error:
        return f"nobody can tell which of its files are the bundle's ({error})"
    return f"it also holds {found}" if found else None


def _own_files(release: Path) -> set[str]:
    """Returns the files that `install` made in a release.

    Raises:
        BundleError: its manifest cannot be read.
    """
    if not os.path.lexists(release / MANIFEST_FILE):
        return {MARK_FILE}  # a kill came when it was begun, or when its removal was almost done
    manifest = _manifest_of(release)
    return {MARK_FILE, *own_files(release, manifest)}


def _manifest_of(release: Path) -> Manifest:
    path = release / MANIFEST_FILE
    manifest = decode_manifest(read_manifest(path), origin=str(path))
    check_paths(manifest, origin=str(path))
    return manifest


def _remove_bundle(release: Path) -> None:
    """Removes the files of a bundle, and the folder if that was all.

    The manifest goes after the files that it lists, so that the next command knows what a kill
    has left.
    """
    with suppress(BundleError, OSError):
        own = _own_files(release)
        remove_temporary(release)
        remove_files(release, own - {MANIFEST_FILE, MARK_FILE})
        remove_files(release, [MANIFEST_FILE, MARK_FILE])
        release.rmdir()

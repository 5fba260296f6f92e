"""The hashes of files that were checked before, so that a large model is not hashed at every load.

A file counts as unchanged under the conditions of git's index (gitformat-index, "racy git"): inode,
size, time of modification and time of change are the same, and both times lie so far before the
check that any later write has another time. A program can set the time of modification back, but
not the time of change, which the system keeps. A medium that was mounted again may have been
changed elsewhere, and any of them before a boot, so hashes count for one `medium` alone. The one
gap is a program that keeps the file mapped for writing: on some file systems its writes have no
time.

`verify` and `install` hash every byte, and so does whoever asks for a signature.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from hybrid_deploy.bundle.atomic_write import write_file
from hybrid_deploy.bundle.medium import Medium, medium_of
from hybrid_deploy.cache_dir import cache_folder
from hybrid_deploy.errors import HybridDeployError

_CLOCK_TICK_NS = 2_000_000_000  # coarsest clock of a file system: 2 s, FAT


class _FileState(msgspec.Struct, frozen=True):
    """Hash of a file, and what `stat` returned when it was hashed."""

    sha256: str
    size_bytes: int
    modified_ns: int
    changed_ns: int
    inode: int


class _Hashes(msgspec.Struct, frozen=True):
    """Content of a cache file: the files of one folder, and where they were hashed."""

    medium: Medium
    states: dict[str, _FileState]


class HashCache:
    """Hashes of the files of one folder, kept in the cache folder between processes.

    Args:
        folder: folder whose files are hashed; names of files are relative to it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        name = hashlib.sha256(os.fsencode(self._folder)).hexdigest()
        self._path = cache_folder("hashes") / f"{name}.json"
        self._medium = medium_of(self._folder)
        self._states = self._read()
        self._changed = False

    def sha256(self, name: str, status: os.stat_result) -> str | None:
        """Returns the remembered SHA-256 of a file; None if it is unknown or the file changed.

        Args:
            name: name of the file.
            status: what `fstat` returns for the open file.
        """
        state = self._states.get(name)
        if state is None or state != _state(status, state.sha256):
            return None
        if self._medium is None or status.st_dev != self._medium.device:
            return None  # another file system is mounted below the folder
        return state.sha256

    def remember(
        self, name: str, sha256: str, before: os.stat_result, after: os.stat_result
    ) -> None:
        """Remembers the SHA-256 of a file, unless it changed meanwhile or is newer than 2 s.

        Args:
            name: name of the file.
            sha256: hash of what was read from the open file.
            before: what `fstat` returned before the reading.
            after: what `fstat` returned after it.
        """
        state = _state(after, sha256)
        if state != _state(before, sha256):
            return
        if time.time_ns() - max(state.modified_ns, state.changed_ns) > _CLOCK_TICK_NS:
            self._states[name] = state
            self._changed = True

    def save(self) -> None:
        """Writes the hashes to disk; if that fails, the files are hashed again next time."""
        if self._changed and self._medium is not None:
            content = msgspec.json.encode(_Hashes(self._medium, self._states))
            with suppress(OSError, HybridDeployError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_file(self._path, content)

    def _read(self) -> dict[str, _FileState]:
        try:
            hashes = msgspec.json.decode(self._path.read_bytes(), type=_Hashes)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}
        return hashes.states if hashes.medium == self._medium else {}


def _state(status: os.stat_result, sha256: str) -> _FileState:
    return _FileState(sha256, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

"""Files whose hashes were computed before, so that a large model is not read twice to be loaded.

What counts as unchanged is what counts for git's index: same file, size and time of modification,
and that time lies so far back that a later change could not have left it as it is.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from hybrid_deploy.bundle.atomic_write import write_file
from hybrid_deploy.cache_dir import cache_folder
from hybrid_deploy.errors import HybridDeployError

_CLOCK_TICK_NS = 2_000_000_000  # the coarsest that file systems count in


class _Known(msgspec.Struct, frozen=True):
    sha256: str
    size_bytes: int
    modified_ns: int
    inode: int


class HashCache:
    """Remembers the hashes of the files of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        name = hashlib.sha256(str(self._folder).encode()).hexdigest()
        self._path = cache_folder("hashes") / f"{name}.json"
        self._known = self._read()
        self._changed = False

    def sha256(self, name: str) -> str | None:
        """Returns the hash of a file if it did not change since it was remembered."""
        known = self._known.get(name)
        if known is None or known != self._state(name, known.sha256):
            return None
        return known.sha256

    def remember(self, name: str, sha256: str) -> None:
        """Keeps the hash of a file that was just read."""
        state = self._state(name, sha256)
        if state is not None and time.time_ns() - state.modified_ns > _CLOCK_TICK_NS:
            self._known[name] = state
            self._changed = True

    def save(self) -> None:
        """Writes what was remembered; where that cannot be, files are read again next time."""
        if self._changed:
            with suppress(OSError, HybridDeployError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_file(self._path, msgspec.json.encode(self._known))

    def _state(self, name: str, sha256: str) -> _Known | None:
        try:
            found = (self._folder / name).stat()
        except OSError:
            return None
        return _Known(sha256, found.st_size, found.st_mtime_ns, found.st_ino)

    def _read(self) -> dict[str, _Known]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, _Known])
        except (OSError, msgspec.MsgspecError):
            return {}

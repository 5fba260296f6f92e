"""Folders for what a command needs while it runs; a killed one's are removed by the next.

    hybrid-deploy-PURPOSE-abcd1234/     the name that mkdtemp makes; locked by its process
        .hybrid-deploy-scratch          marks the folder as one of ours
        files/                          what the command gets

Only a folder of this form and of this user is removed; any other is somebody's own.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hybrid_deploy.process_locks import lock_open

_MARK_FILE, _FILES = ".hybrid-deploy-scratch", "files"
_RANDOM = "[a-z0-9_]{8}"  # of tempfile.mkdtemp


@contextmanager
def scratch_folder(purpose: str, parent: Path | None = None) -> Iterator[Path]:
    """Yields an empty folder, and removes it at the end.

    Folders of the same purpose that killed processes of this user left are removed first.

    Args:
        purpose: a word for the folder's name: hybrid-deploy-PURPOSE-...
        parent: folder in which it lies; None takes the system's temporary folder.
    """
    prefix = f"hybrid-deploy-{purpose}-"
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    for folder in _of_form(prefix, parent):
        _remove_if_dead(folder)
    with _locked_folder(prefix, parent) as folder:
        yield folder


@contextmanager
def _locked_folder(prefix: str, parent: Path) -> Iterator[Path]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with _opened(folder) as descriptor:
            if descriptor is not None:
                lock_open(descriptor, wait=True)
            if not folder.exists():
                continue  # another process took it for a dead one before it was locked
            try:
                (folder / _MARK_FILE).touch()
                (folder / _FILES).mkdir(mode=0o700)
                yield folder / _FILES
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


def _of_form(prefix: str, parent: Path) -> list[Path]:
    """Returns the folders that have our mark and a name that mkdtemp makes."""
    name = re.compile(re.escape(prefix) + _RANDOM)
    folders = [path for path in parent.glob(f"{prefix}*") if name.fullmatch(path.name)]
    return [path for path in folders if (path / _MARK_FILE).is_file()]


def _remove_if_dead(folder: Path) -> None:
    """Removes a folder of this user whose process does not live any more."""
    with suppress(OSError), _opened(folder) as descriptor:
        if descriptor is None or os.fstat(descriptor).st_uid != os.getuid():
            return
        if lock_open(descriptor, wait=False):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """Yields the descriptor of a folder that is no link; None where folders cannot be opened."""
    if sys.platform == "win32":
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)

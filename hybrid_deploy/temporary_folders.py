"""Temporary folders that are locked while their process lives, and their removal afterwards.

Whoever makes such a folder holds a lock on the folder itself, which no second path to it avoids,
and which ends with the process. Others remove only what they can lock. What a user has mounted in
a folder is not removed with it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hybrid_deploy.process_locks import lock_open


@contextmanager
def locked_folder(make: Callable[[], Path]) -> Iterator[Path]:
    """Yields a new folder, which nobody takes for one of a dead process; it is not removed.

    Args:
        make: makes an empty folder of a new name and returns its path.
    """
    folder, descriptor = _made_and_locked(make)
    try:
        yield folder
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _made_and_locked(make: Callable[[], Path]) -> tuple[Path, int | None]:
    while True:
        folder = make()
        try:
            descriptor = open_folder(folder)
        except FileNotFoundError:
            continue  # another process took it for a dead one
        lock_open(descriptor, wait=True)
        if folder.exists():
            return folder, descriptor
        if descriptor is not None:
            os.close(descriptor)  # the same, after it was opened


def remove_if_dead(folder: Path, *, is_sole_writer: bool = False) -> None:
    """Removes a temporary folder whose process does not live any more.

    It stays if it is a link, or if something is mounted in it.

    Args:
        folder: the folder.
        is_sole_writer: whether the caller holds a lock for whatever is written there. The folder is
            then also removed if it is of another user, or on a file system without locks.
    """
    with suppress(OSError):
        descriptor = open_folder(folder)
        try:
            locked = lock_open(descriptor, wait=False)
            if (locked is not False) if is_sole_writer else (locked and _is_own(folder)):
                remove_tree(folder)
        finally:
            if descriptor is not None:
                os.close(descriptor)


def _is_own(folder: Path) -> bool:
    return folder.stat().st_uid == os.getuid()


def remove_tree(folder: Path) -> None:
    """Removes a folder as far as possible; it stays whole if something is mounted in it."""
    if mount_in(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)


def mount_in(folder: Path) -> Path | None:
    """Returns the first mount point in a folder, or the folder if it is one; None without one."""
    if is_mount_point(folder):
        return folder
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if is_mount_point(Path(place, name)):
                return Path(place, name)
    return None


def is_mount_point(path: Path) -> bool:
    """Returns whether another file system, or another part of the same one, is mounted there."""
    if sys.platform != "linux":
        return os.path.ismount(path)
    with suppress(OSError):
        return _mount_of(path) != _mount_of(path.parent)
    return False


def open_folder(folder: Path) -> int | None:
    """Returns a descriptor of a folder, to be closed; None where folders cannot be opened.

    Raises:
        OSError: it does not exist, is a link or no folder, or cannot be read.
    """
    if sys.platform == "win32":
        return None
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _mount_of(path: Path) -> list[str]:
    """Returns the line of proc(5) that names the mount in which a file or folder lies."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii").splitlines()
    finally:
        os.close(descriptor)
    return [line for line in lines if line.startswith("mnt_id:")]

"""Atomic writes of files and folders: a reader sees the complete output or none.

A folder is written beside its target under a temporary name. Then the two exchange their names in
one step, where the file system can do that (Linux, renameat2); elsewhere they change places by two
renames, and `recover` undoes the first one if the process was killed between them. The next write
to the same target removes what killed processes left.

Whoever writes a folder holds a lock for its target, so what lies beside it is of no living process.
A temporary file is locked itself while it is written, so that the next write knows a dead one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hybrid_deploy.errors import HybridDeployError, InputError, OutputExistsError
from hybrid_deploy.process_locks import lock_open
from hybrid_deploy.system_errors import full_disk_reason

_RANDOM = "[0-9a-f]{8}"
_TEMPORARY = re.compile(rf"\..+\.(staging|retired|writing)-{_RANDOM}")
_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100  # fcntl.h


@contextmanager
def staged_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yields an empty folder, and renames it to `target` when the block ends without an error.

    The folder is created beside `target`, and flushed to disk before it is renamed. When the block
    raises an error, the folder is deleted and `target` stays as it was. The caller holds a lock for
    `target`.

    Raises:
        OutputExistsError: `target` exists and `force` is false.
        InputError: `target` is a file.
        HybridDeployError: the disk is full or not writable.
    """
    recover(target)
    if os.path.lexists(target) and not force:
        raise OutputExistsError(target)
    if os.path.lexists(target) and (target.is_symlink() or not target.is_dir()):
        what = "a link" if target.is_symlink() else "a file"
        raise InputError(f"{target} is {what}, a folder was expected; name another output")
    make_parent(target)
    with disk_errors(target):
        _remove_leftovers(target)
        staging = _make_temporary(target.parent, _staging_prefix(target))
    try:
        with disk_errors(target):
            yield staging
            sync_tree(staging)
            _replace_folder(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_file(target: Path, data: bytes) -> None:
    """Replaces the content of `target` in one step: by a rename, after it is flushed to disk.

    Raises:
        HybridDeployError: the disk is full or not writable.
    """
    with disk_errors(target):
        for path in _siblings(target, _writing_prefix(target)):
            _remove_unless_locked(path)
        with _temporary_file(target) as temporary:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            sync_names(target.parent)


def make_parent(target: Path) -> None:
    """Makes the folder of `target` if it does not exist.

    Raises:
        HybridDeployError: the disk is full or not writable.
    """
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)


def recover(target: Path) -> None:
    """Brings back a folder that a killed process had set aside and not replaced.

    The caller holds the lock of `target`. It does nothing if `target` exists.
    """
    for retired in _retired(target):
        if not os.path.lexists(target):
            (retired / target.name).rename(target)
            retired.rmdir()


def is_set_aside(target: Path) -> bool:
    """Returns whether `target` is missing because another folder was about to take its place."""
    return not os.path.lexists(target) and bool(_retired(target))


def _remove_leftovers(target: Path) -> None:
    """Removes the temporary folders that killed processes left beside `target`."""
    for prefix in (_staging_prefix(target), _retired_prefix(target)):
        for folder in _siblings(target, prefix):
            shutil.rmtree(folder, ignore_errors=True)


def _retired(target: Path) -> list[Path]:
    """Returns the temporary folders that hold a folder of the target's name."""
    beside = _siblings(target, _retired_prefix(target))
    return [folder for folder in beside if (folder / target.name).is_dir()]


def remove_temporary(folder: Path) -> None:
    """Removes what killed processes were writing in a folder whose lock the caller holds."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name) and not path.is_symlink():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def _temporary_file(target: Path) -> Iterator[Path]:
    """Yields the path of an empty file beside `target`; it is locked, and removed at the end."""
    while True:
        temporary = target.parent / f"{_writing_prefix(target)}{secrets.token_hex(4)}"
        with temporary.open("xb") as file:
            lock_open(file.fileno(), wait=True)
            if os.fstat(file.fileno()).st_nlink == 0:
                continue  # another process took it for a dead one before it was locked
            if sys.platform == "win32":
                file.close()  # an open file is not replaced there
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)
            return


def _remove_unless_locked(path: Path) -> None:
    """Removes a temporary file whose process does not live any more."""
    with suppress(OSError), path.open("r+b") as file:
        if lock_open(file.fileno(), wait=False):
            path.unlink()


def _make_temporary(parent: Path, prefix: str) -> Path:
    """Makes a folder with the mode that the user's umask leaves to any folder."""
    folder = parent / f"{prefix}{secrets.token_hex(4)}"
    folder.mkdir()
    return folder


def _staging_prefix(target: Path) -> str:
    return f".{target.name}.staging-"


def _retired_prefix(target: Path) -> str:
    return f".{target.name}.retired-"


def _writing_prefix(target: Path) -> str:
    return f".{target.name}.writing-"


def _siblings(target: Path, prefix: str) -> list[Path]:
    """Returns the files and folders beside `target` that this module named with a prefix."""
    name = re.compile(re.escape(prefix) + _RANDOM)
    try:
        beside = list(target.parent.iterdir())
    except OSError:
        return []
    named = [path for path in beside if name.fullmatch(path.name) and not path.is_symlink()]
    return [path for path in named if path.is_dir() or path.is_file()]


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Raises what the system says of a disk in words of this package; other errors pass.

    Raises:
        HybridDeployError: the disk is full or not writable; the message names `target`.
    """
    try:
        yield
    except OSError as error:
        if full := full_disk_reason(error):
            reason = full
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = "no permission to write there; name another output"
        elif error.errno == errno.ENAMETOOLONG:
            reason = "the name is too long; name another output"
        else:
            raise
        raise HybridDeployError(f"{target} was not written: {reason}") from error


def _replace_folder(staging: Path, target: Path) -> None:
    """Gives a folder the name `target`; what had that name before is then called `staging`."""
    if not target.exists():
        staging.rename(target)
    elif not _exchange(staging, target):
        retired = _make_temporary(target.parent, _retired_prefix(target))
        target.rename(retired / target.name)
        try:
            staging.rename(target)
        except OSError:
            (retired / target.name).rename(target)
            raise
        finally:
            shutil.rmtree(retired, ignore_errors=True)
    sync_names(target.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges the names of two folders in one step; returns whether the system can do that."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    paths = os.fsencode(first), os.fsencode(second)
    done: int = renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE)
    return done == 0


def sync_tree(folder: Path) -> None:
    """Flushes everything below a folder to disk, and the folder itself.

    Raises:
        OSError: the disk is full or fails.
    """
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def sync_names(folder: Path) -> None:
    """Flushes the names in a folder to disk, after one of them was given to something else.

    An error changes nothing for readers: if the power fails then, they find what was there before.
    """
    with suppress(OSError):
        _sync(folder)


def _sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

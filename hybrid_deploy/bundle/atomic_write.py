"""Atomic writes of files and folders: a reader sees the complete output or none.

A file or folder is written beside its target under a temporary name, and then placed there, see
`placement`. The next write to the same target removes what killed processes left.

Temporary files and folders are locked themselves while they are written, so that the next write
knows a dead one, whatever path leads there. Whoever writes a folder also locks its target.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from hybrid_deploy.bundle.paths import link_on_the_way
from hybrid_deploy.bundle.placement import (
    Check,
    check_file_output,
    check_folder_output,
    make_temporary,
    place_file,
    place_folder,
    sync,
)
from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.process_locks import lock_open
from hybrid_deploy.system_errors import full_disk_reason
from hybrid_deploy.temporary_folders import locked_folder, remove_if_dead, remove_tree
from hybrid_deploy.temporary_names import (
    Kind,
    is_temporary_name,
    temporaries_beside,
    temporary_name,
)


@contextmanager
def staged_folder(
    target: Path, *, force: bool = False, check: Check | None = None
) -> Iterator[Path]:
    """Yields an empty folder, and renames it to `target` when the block ends without an error.

    The folder is created beside `target`, and flushed to disk before it is renamed. When the block
    raises an error, the folder is deleted and `target` stays as it was; so it does if somebody else
    has made it meanwhile. The caller holds a lock for `target`.

    Args:
        target: path of the folder.
        force: whether a folder at that path may be replaced.
        check: which folders must stay even so; None replaces any.

    Raises:
        OutputExistsError: `target` exists and `force` is false.
        InputError: `target` is no folder, or a mount point. What the check raises passes.
        HybridDeployError: the disk is full or not writable.
    """
    recover(target)
    check_folder_output(target, force=force, check=check)
    make_parent(target)
    with disk_errors(target):
        _remove_leftovers(target)
        with locked_folder(lambda: make_temporary(target, "staging")) as staging:
            made = staging.stat()
            try:
                yield staging
                sync_tree(staging)
                place_folder(staging, target, force=force, check=check)
            finally:
                _remove_same(staging, made)


def write_file(target: Path, data: bytes, *, force: bool = True) -> None:
    """Writes a file in one step: by a rename, after its content is flushed to disk.

    Args:
        target: path of the file.
        data: its content.
        force: whether a file at that path is replaced, also one that somebody makes meanwhile.

    Raises:
        OutputExistsError: `target` exists and `force` is false.
        InputError: something else than a file is there: a link, a pipe or a device.
        HybridDeployError: the disk is full or not writable.
    """
    check_file_output(target, force=force)
    with disk_errors(target):
        for path in _left(target, "writing"):
            _remove_unless_locked(path)
        with _temporary_file(target) as temporary:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            place_file(temporary, target, force=force)


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


def _remove_same(folder: Path, made: os.stat_result) -> None:
    """Removes a folder if it still is the one that was made."""
    with suppress(OSError):
        if os.path.samestat(os.lstat(folder), made):
            remove_tree(folder)


def _remove_leftovers(target: Path) -> None:
    """Removes the temporary folders that killed processes left beside `target`."""
    kinds: tuple[Kind, ...] = ("staging", "retired")
    for kind in kinds:
        for folder in _left(target, kind):
            remove_if_dead(folder, is_sole_writer=True)


def _retired(target: Path) -> list[Path]:
    """Returns the temporary folders that hold a folder of the target's name."""
    left = _left(target, "retired")
    return [folder for folder in left if (folder / target.name).is_dir()]


def is_temporary(path: Path) -> bool:
    """Returns whether a file or folder is one that a process of this toolkit is or was writing."""
    return is_temporary_name(path.name) and not path.is_symlink()


def remove_temporary(folder: Path) -> None:
    """Removes what killed processes were writing in a folder whose lock the caller holds."""
    for path in folder.iterdir():
        if is_temporary(path):
            if path.is_dir():
                remove_if_dead(path, is_sole_writer=True)
            elif path.is_file():
                _remove_unless_locked(path, is_sole_writer=True)


def remove_files(folder: Path, names: Collection[str]) -> None:
    """Removes files below a folder, and the folders below it that are empty then.

    Whatever else is there stays, and so does a file that cannot be removed.
    """
    for name in names:
        if link_on_the_way(folder, name) is None:
            with suppress(OSError):
                (folder / name).unlink()
    parents = {parent for name in names for parent in PurePosixPath(name).parents}
    for parent in sorted(parents, key=lambda path: len(path.parts), reverse=True):
        if parent.parts and link_on_the_way(folder, str(parent)) is None:
            with suppress(OSError):
                (folder / parent).rmdir()


@contextmanager
def _temporary_file(target: Path) -> Iterator[Path]:
    """Yields the path of an empty file beside `target`; it is locked, and removed at the end."""
    while True:
        temporary = target.parent / temporary_name(target.name, "writing")
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


def _remove_unless_locked(path: Path, *, is_sole_writer: bool = False) -> None:
    """Removes a temporary file whose process does not live any more; see `remove_if_dead`."""
    with suppress(OSError):
        with path.open("rb") as file:
            locked = lock_open(file.fileno(), wait=False)
            if locked:
                path.unlink()
        if is_sole_writer and locked is None:
            path.unlink()  # after it is closed, for Windows removes no open file


def _left(target: Path, kind: Kind) -> list[Path]:
    """Returns the temporary files or folders of a kind beside `target`."""
    beside = [path for path in temporaries_beside(target, kind) if not path.is_symlink()]
    return [path for path in beside if path.is_dir() or path.is_file()]


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


def sync_tree(folder: Path) -> None:
    """Flushes everything below a folder to disk, and the folder itself.

    Raises:
        OSError: the disk is full or fails.
    """
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)

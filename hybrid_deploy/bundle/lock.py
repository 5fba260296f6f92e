"""The locks of whoever writes a bundle, which leave no file behind.

The lock of a bundle is a file beside it, for a bundle is replaced as a whole and may not exist yet:
a lock inside would go away with the old one, or have no place. A bundle that is mounted elsewhere
as well has two such places, so a folder that exists is locked itself too. The folder of the
installed bundles is never replaced, so its lock is a file inside, and who may write there needs no
right to the folder around it.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid_deploy.errors import HybridDeployError, InputError
from hybrid_deploy.process_locks import lock_open
from hybrid_deploy.temporary_folders import open_folder
from hybrid_deploy.temporary_names import lock_name

if TYPE_CHECKING:
    from filelock import FileLock

_INSIDE = ".hybrid-deploy.lock"
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_LOGGER = logging.getLogger(__name__)


@contextmanager
def exclusive(target: Path, *, wait: bool = True, inside: bool = False) -> Iterator[None]:
    """Holds the lock of a bundle or folder, whatever path leads to it.

    If another process holds it, that is reported to the logger of this module before the wait.

    The file of the lock is removed before the lock is released, so a process that waits for the
    removed file has to take the lock again; filelock does that since 3.24.

    Args:
        target: the bundle, or the folder; a bundle need not exist yet.
        wait: whether to wait for another process that holds the lock.
        inside: whether the lock is inside the folder, and not beside it.

    Raises:
        InputError: something else lies where the lock would be.
        filelock.Timeout: another process holds the lock, and `wait` is false.
        HybridDeployError: the folder of the lock is not writable.
    """
    from filelock import FileLock  # its import takes longer than that of this module

    target = Path(os.path.realpath(target))
    path = target / _INSIDE if inside else target.parent / lock_name(target.name)
    _check_free(path)
    lock, folder = FileLock(path), nullcontext() if inside else _locked_itself(target, wait=wait)
    try:
        with _named_folder(path):
            _acquire(lock, target, wait=wait)
        with folder:
            yield
    finally:
        if lock.is_locked:  # an interrupt may come before the block begins
            with suppress(OSError):  # Windows removes it at the release
                path.unlink()
            lock.release()


@contextmanager
def _locked_itself(folder: Path, *, wait: bool) -> Iterator[None]:
    """Holds the lock of a folder itself, if it exists and its file system has such locks."""
    descriptor = _lock_folder(folder, wait=wait)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock_folder(folder: Path, *, wait: bool) -> int | None:
    from filelock import Timeout

    while True:
        try:
            descriptor = open_folder(folder)
        except OSError:  # there is none yet, or this user may not read it
            return None
        try:
            if lock_open(descriptor, wait=False) is False:
                if not wait:
                    raise Timeout(str(folder))
                _report_wait(folder)
                lock_open(descriptor, wait=True)
            if descriptor is None or _is_at(descriptor, folder):
                return descriptor
        except BaseException:
            if descriptor is not None:
                os.close(descriptor)
            raise
        os.close(descriptor)  # it was replaced during the wait


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _acquire(lock: FileLock, target: Path, *, wait: bool) -> None:
    """Takes a lock, and reports it if that needs a wait."""
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise
        _check_can_be_made(Path(lock.lock_file))
        _report_wait(target)
        lock.acquire()


def _check_can_be_made(path: Path) -> None:
    """Makes the file of a lock if it is missing.

    To filelock, a file that cannot be made is one that another process has just removed: it would
    wait for ever.
    """
    if not os.path.lexists(path):
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        os.close(os.open(path, flags, 0o666))


def _report_wait(target: Path) -> None:
    _LOGGER.warning("another process is writing %s; waiting until it has ended", target)


@contextmanager
def _named_folder(lock: Path) -> Iterator[None]:
    """Raises what the system says of a lock in words that name its folder; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOENT:  # in /proc, and where the folder was removed
            raise HybridDeployError(
                f"no file can be made in {lock.parent} ({error.strerror}); name another folder"
            ) from error
        if error.errno not in _NOT_WRITABLE:
            raise
        raise HybridDeployError(
            f"{lock.parent} is not writable ({error.strerror}), which it must be for the lock "
            f"{lock.name}; change its permissions or the user"
        ) from error


def _check_free(path: Path) -> None:
    """Checks that nothing of somebody else lies where a lock will be: locks are empty files.

    Raises:
        InputError: something lies there that is no empty file.
    """
    with suppress(OSError):
        status = os.lstat(path)
        if status.st_size or not stat.S_ISREG(status.st_mode):
            raise InputError(
                f"{path} is in the way: a lock, an empty file, is made there; move it away"
            )

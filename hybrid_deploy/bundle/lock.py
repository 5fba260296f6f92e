"""The lock of whoever writes a bundle, which leaves no file behind."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hybrid_deploy.errors import InputError

_LOGGER = logging.getLogger(__name__)


@contextmanager
def exclusive(target: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock of a bundle, whatever path leads to it and whether it exists yet.

    If another process holds it, that is reported to the logger of this module before the wait.

    The lock is a file beside the bundle. It is removed before the lock is released, so a process
    that waits for the removed file has to take the lock again; filelock does that since 3.24.

    Raises:
        InputError: something else lies where the lock would be.
        filelock.Timeout: another process holds the lock, and `wait` is false.
    """
    from filelock import FileLock, Timeout  # its import takes longer than that of this module

    target = Path(os.path.realpath(target))
    path = target.parent / f".{target.name}.lock"
    _check_free(path)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise
        _LOGGER.warning("another process is writing %s; waiting until it has ended", target)
        lock.acquire()
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes it at the release
            path.unlink()
        lock.release()


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

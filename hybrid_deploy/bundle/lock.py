"""The lock of whoever writes a bundle, which leaves no file behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def exclusive(target: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock of a bundle, whatever path leads to it and whether it exists yet.

    The lock is a file beside the bundle. It is removed before the lock is released, so a process
    that waits for the removed file has to take the lock again; filelock does that since 3.24.

    Raises:
        filelock.Timeout: another process holds the lock, and `wait` is false.
    """
    from filelock import FileLock  # its import takes longer than that of this module

    target = Path(os.path.realpath(target))
    path = target.parent / f".{target.name}.lock"
    with FileLock(path, timeout=-1 if wait else 0):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes it at the release
                path.unlink()

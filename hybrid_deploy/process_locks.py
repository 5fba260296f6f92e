"""Locks of open files and folders, by which others know that the process that made them lives."""

from __future__ import annotations

import errno
import sys

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def lock_open(descriptor: int | None, *, wait: bool) -> bool | None:
    """Locks an open file or folder until it is closed or the process ends.

    Returns:
        False if another process holds it and `wait` is false; None where the system or the file
        system has no such locks.
    """
    if sys.platform == "win32" or descriptor is None:
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _HELD else None
    return True

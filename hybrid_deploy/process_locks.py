"""Locks of open files and folders, by which others know that the process that made them lives."""

from __future__ import annotations

import sys


def lock_open(descriptor: int, *, wait: bool) -> bool:
    """Locks an open file or folder until it is closed or the process ends.

    Returns:
        False where that cannot be done: another process holds it and `wait` is false, or the
        system has no such locks.
    """
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

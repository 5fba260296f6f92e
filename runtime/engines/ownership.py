"""Refuses engines that another user could have planted: to load an engine is to run its code."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from hybrid_deploy.errors import BuildError

_ROOT = 0
_OTHERS_CAN_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_CAN_ENTER = stat.S_IRWXG | stat.S_IRWXO


def check_entry(entry: Path, files: Iterable[str]) -> None:
    """Checks the folder of an engine, the folder around it, and the engine's files.

    Files in a folder that nobody else can enter may have any mode.

    Raises:
        BuildError: another user could have written one of them; the message names the remedy.
    """
    around = entry.parent.resolve()
    check_own(around)
    is_closed = sys.platform != "win32" and not os.stat(around).st_mode & _OTHERS_CAN_ENTER
    for path in (entry, *(entry / name for name in files)):
        with suppress(FileNotFoundError):  # whoever reads it says what is missing
            check_own(path, is_closed=is_closed)


def check_own(path: Path, *, is_closed: bool = False) -> None:
    """Checks that a file or folder is this user's or root's, no link, and closed to other writers.

    Nothing is checked on Windows, where files have no such owner and mode.

    Args:
        path: the file or folder.
        is_closed: whether nobody else can enter a folder around it; its mode is not checked then.

    Raises:
        BuildError: it is not; the message names the reason and the remedy.
        OSError: the path does not exist.
    """
    if sys.platform == "win32":
        return
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        reason = "is a link; delete it"
    elif status.st_uid not in (os.getuid(), _ROOT):
        reason = f"belongs to user {status.st_uid}; delete it, or build as that user"
    elif not is_closed and status.st_mode & _OTHERS_CAN_WRITE:
        reason = f"can be written by other users; see what it holds, then: chmod go-w {path}"
    else:
        return
    raise BuildError(f"{path} is not used, because an engine runs native code: it {reason}")

"""Starts Python processes that run a module of this package, whatever folder the user is in."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PARENT_VARIABLE = "HYBRID_DEPLOY_PARENT"
_PR_SET_PDEATHSIG = 1  # sys/prctl.h


def command(module: str, *arguments: str) -> list[str]:
    """Returns the command that runs a module with this Python."""
    return [sys.executable, "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Returns this process's environment, with the folders that it imports from.

    Run the command in an empty folder: `-m` imports from the working folder first.
    """
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        _PARENT_VARIABLE: str(os.getpid()),
    }


def end_with_parent() -> None:
    """Asks Linux to kill this process when the process that started it ends.

    It ends at once if that has happened already. Other systems do not have this.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = os.environ.get(_PARENT_VARIABLE)
    if parent is not None and os.getppid() != int(parent):
        os._exit(1)

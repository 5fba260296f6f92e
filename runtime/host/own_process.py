"""Starts Python processes that run a module of this package, whatever folder the user is in."""

from __future__ import annotations

import os
import sys


def command(module: str, *arguments: str) -> list[str]:
    """Returns the command that runs a module with this Python."""
    return [sys.executable, "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Returns this process's environment, with the folders that it imports from.

    Run the command in an empty folder: `-m` imports from the working folder first.
    """
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}

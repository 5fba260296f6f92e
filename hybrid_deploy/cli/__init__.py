"""The command line: arguments enter, reports go to stdout, progress and errors to stderr.

No module of this room may import PyTorch, ONNX or a backend before its command runs. `main` is
imported when it is first used, so that Ctrl-C finds the handler of `start` as early as possible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_deploy.cli.entry_point import start

if TYPE_CHECKING:
    from hybrid_deploy.cli.group import main

__all__ = ["main", "start"]


def __getattr__(name: str) -> object:
    """Returns the command `main` from its module (PEP 562)."""
    if name != "main":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hybrid_deploy.cli.group import main

    return main

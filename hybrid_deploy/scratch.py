"""Folders for what a command needs while it runs; a killed one's are removed by the next.

Only a folder of this user with a name that `temporary_names` has made for the same purpose is
removed; any other is somebody's own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hybrid_deploy.temporary_folders import locked_folder, remove_if_dead, remove_tree
from hybrid_deploy.temporary_names import is_scratch_name, scratch_name


@contextmanager
def scratch_folder(purpose: str, parent: Path | None = None) -> Iterator[Path]:
    """Yields an empty folder that only this user can enter, and removes it at the end.

    Folders of the same purpose that killed processes of this user left are removed first.

    Args:
        purpose: a word for the folder's name: hybrid-deploy-PURPOSE-...
        parent: folder in which it lies; None takes the system's temporary folder.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    with suppress(OSError):  # a folder that nobody may list
        for name in os.listdir(parent):
            if is_scratch_name(name, purpose):
                remove_if_dead(parent / name)

    def make() -> Path:
        folder = parent / scratch_name(purpose)
        folder.mkdir(mode=0o700)
        return folder

    with locked_folder(make) as folder:
        try:
            yield folder
        finally:
            remove_tree(folder)

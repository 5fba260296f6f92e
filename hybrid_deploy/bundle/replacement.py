"""Which folders `--force` may replace by a bundle: bundles that hold nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from hybrid_deploy.bundle.atomic_write import is_temporary
from hybrid_deploy.bundle.manifest import Manifest, decode_manifest, read_manifest
from hybrid_deploy.bundle.paths import MANIFEST_FILE, SIGNATURE_FILE, is_bundle
from hybrid_deploy.bundle.pending import MARK_FILE, OLD_NOTE_FILE, is_marked
from hybrid_deploy.errors import BundleError, InputError

_MOST_NAMED = 3
_OWN_FILES = {MANIFEST_FILE, SIGNATURE_FILE, OLD_NOTE_FILE}


def check_replaceable(folder: Path, name: Path) -> None:
    """Checks that a folder is a bundle in which nothing lies that its manifest does not list.

    Args:
        folder: the folder.
        name: what messages call it.

    Raises:
        InputError: it is no bundle, its manifest cannot be read, or it holds something else.
    """
    if not is_bundle(folder):
        raise InputError(f"{name} exists and is not a bundle; it is not replaced")
    try:
        manifest = decode_manifest(read_manifest(folder / MANIFEST_FILE), str(name / MANIFEST_FILE))
    except BundleError as error:
        raise InputError(
            f"{name} is not replaced, since nobody can tell which files are the bundle's: {error}; "
            "move the folder away, or name another output"
        ) from error
    if foreign := list(islice(_foreign(folder, manifest), _MOST_NAMED + 1)):
        more = " and more" if len(foreign) > _MOST_NAMED else ""
        raise InputError(
            f"{name} is not replaced: it also holds {', '.join(foreign[:_MOST_NAMED])}{more}, "
            "which the bundle does not list; move that away, or name another output"
        )


def _foreign(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yields the files and folders in a bundle that are neither listed nor made by this toolkit."""
    files = {*manifest.files, *_OWN_FILES}
    parents = {str(parent) for name in manifest.files for parent in PurePosixPath(name).parents}
    for place, folders, names in os.walk(folder):
        home = Path(place).relative_to(folder)
        yield from (
            str(home / name)
            for name in sorted(names)
            if (home / name).as_posix() not in files and not _is_own(folder, home / name)
        )
        left = [name for name in sorted(folders) if not _is_own(folder, home / name)]
        inner = [name for name in left if (home / name).as_posix() in parents]
        yield from (f"{home / name}/" for name in left if name not in inner)
        folders[:] = inner


def _is_own(folder: Path, name: Path) -> bool:
    """Returns whether this toolkit has made a file or folder that no manifest lists."""
    if len(name.parts) == 1:
        return is_temporary(folder / name) or is_marked(folder / name)
    return len(name.parts) == 2 and name.name == MARK_FILE

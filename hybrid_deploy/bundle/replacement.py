"""What `--force` may replace: bundles and variants that hold nothing but their own files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from hybrid_deploy.bundle.atomic_write import is_temporary
from hybrid_deploy.bundle.manifest import Manifest, decode_manifest, read_manifest
from hybrid_deploy.bundle.paths import MANIFEST_FILE, SIGNATURE_FILE, is_bundle, top_folder
from hybrid_deploy.bundle.pending import OLD_NOTE_FILE, marked_files
from hybrid_deploy.errors import BundleError, InputError, OutputExistsError
from hybrid_deploy.temporary_folders import is_mount_point, mount_in

_MOST_NAMED = 3
_OWN_FILES = (MANIFEST_FILE, SIGNATURE_FILE, OLD_NOTE_FILE)


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
    if also := first_named(foreign(folder, own_files(folder, manifest))):
        raise InputError(
            f"{name} is not replaced: it also holds {also}, which the bundle does not list; "
            "move that away, or name another output"
        )


def check_variant_output(folder: Path, manifest: Manifest, name: str, *, force: bool) -> None:
    """Checks that a variant can be added to a bundle, in place of one of its name if there is one.

    Args:
        folder: folder of the bundle.
        manifest: manifest of the bundle.
        name: name of the variant.
        force: whether a variant of that name may be replaced.

    Raises:
        OutputExistsError: the bundle has a variant of that name and `force` is false.
        InputError: the folder of that variant holds something else than its listed files.
    """
    if name not in manifest.variants:
        return
    if not force:
        raise OutputExistsError(f"variant {name} of {folder}")
    home = top_folder(manifest.variants[name].encoder.file)
    found = foreign(folder, own_files(folder, manifest))
    if also := first_named(path for path in found if path.startswith(f"{home}/")):
        raise InputError(
            f"variant {name} of {folder} is not replaced: its folder also holds {also}, which the "
            "bundle does not list; move that away, or give another name"
        )


def own_files(folder: Path, manifest: Manifest) -> set[str]:
    """Returns the paths in a bundle that are its own: what is listed, signed or marked."""
    return {*manifest.files, *_OWN_FILES, *marked_files(folder)}


def foreign(folder: Path, files: Iterable[str]) -> Iterator[str]:
    """Yields what lies in a bundle, is not among `files`, and was not made by this toolkit.

    A mount point is foreign, and nothing below it is looked at.

    Args:
        folder: the bundle.
        files: paths in it.

    Yields:
        Paths in the bundle; that of a folder ends with a slash.
    """
    files = set(files)
    parents = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    for place, folders, names in os.walk(folder):
        home = Path(place).relative_to(folder)
        for name in sorted(names):
            is_own = (home / name).as_posix() in files or _is_leftover(folder, home / name)
            if not is_own or is_mount_point(folder / home / name):
                yield str(home / name)
        inner = []
        for name in sorted(folders):
            if _is_leftover(folder, home / name):
                if mounted := mount_in(folder / home / name):
                    yield f"{mounted.relative_to(folder)}/"
                continue
            if (home / name).as_posix() in parents and not _leads_away(folder / home / name):
                inner.append(name)
            else:
                yield f"{home / name}/"
        folders[:] = inner


def first_named(names: Iterator[str]) -> str:
    """Returns the first few names in one text, which says whether there are more."""
    first = list(islice(names, _MOST_NAMED + 1))
    return ", ".join(first[:_MOST_NAMED]) + (" and more" if len(first) > _MOST_NAMED else "")


def _is_leftover(folder: Path, name: Path) -> bool:
    """Returns whether a killed process of this toolkit left a file or folder in a bundle."""
    return len(name.parts) == 1 and is_temporary(folder / name)


def _leads_away(folder: Path) -> bool:
    """Returns whether a folder is a link or a mount point."""
    return folder.is_symlink() or is_mount_point(folder)

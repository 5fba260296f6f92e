"""The names of variants and the paths of files in a bundle, checked before one becomes a path."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from hybrid_deploy.argument_checks import check_text
from hybrid_deploy.bundle.input_specs import TextInput
from hybrid_deploy.bundle.manifest import SEAL_BEGIN, Manifest, Tokenizer, Variant
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BundleError, UsageError

GOLDEN_FOLDER = "golden"
"""Folder of the golden samples in a bundle."""

MANIFEST_FILE = "manifest.json"
"""File in a bundle that describes the others."""

SIGNATURE_FILE = "signature.json"
"""File in a bundle that holds its signatures; the manifest does not list it."""

_MAX_NAME = 64
_MAX_PART_BYTES = 255  # NAME_MAX of Linux's file systems
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._+-]{{0,{_MAX_NAME - 1}}}")
_RESERVED = {GOLDEN_FOLDER, MANIFEST_FILE}
_OF_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*[. ]", re.IGNORECASE | re.DOTALL)
_OUTSIDE_NAMES = re.compile(r"[\\:\x00-\x1f]")  # separators of Windows, control characters


def check_variant_name(name: str) -> None:
    """Checks that a name can be the name of a variant, and so of a folder in a bundle.

    Raises:
        UsageError: the name is empty, too long, reserved, or has other characters than letters,
            digits, `.`, `_`, `+` and `-`.
    """
    check_text("the name of a variant", name)
    if not is_variant_name(name):
        taken = f"; {name} is taken" if name.lower() in _RESERVED else ""
        raise UsageError(
            f"{name!r} cannot name a variant: 1 to {_MAX_NAME} letters, digits, '.', '_', '+' or "
            f"'-' that begin with a letter or digit{taken}"
        )


def is_variant_name(name: str) -> bool:
    """Returns whether a name can be the name of a variant, see `check_variant_name`."""
    return bool(_NAME.fullmatch(name)) and name.lower() not in _RESERVED


def check_paths(manifest: Manifest, origin: str) -> None:
    """Checks that every path in a manifest stays in the bundle and is one of its listed files.

    Each variant must have a folder of its own, directly in the bundle, so that the removal of one
    variant removes nothing else.

    Args:
        manifest: the manifest.
        origin: name of the manifest's file in messages.

    Raises:
        BundleError: a path leads elsewhere, here or on another system, is not listed with a hash,
            or two variants share a folder.
    """
    for name in manifest.files:
        if not is_inside(name):
            raise BundleError(f"{origin} names a file outside its bundle: {name!r}")
        if not _is_portable(name):
            raise BundleError(f"{origin} names a file that means another elsewhere: {name!r}")
    if twins := _twins(manifest.files):
        raise BundleError(f"{origin} names {twins[0]!r} and {twins[1]!r}, which are one elsewhere")
    for name in _referenced(manifest):
        if name not in manifest.files:
            raise BundleError(f"{origin} uses {name!r}, which is not among its files")
    homes: dict[str, str] = {}
    others = {top_folder(name) for name in _referenced_outside_variants(manifest)}
    for variant_name, variant in manifest.variants.items():
        folders = {top_folder(file) for file in _graph_files(variant)}
        home = folders.pop()
        flat = any(len(PurePosixPath(file).parts) != 2 for file in _graph_files(variant))
        if (
            folders
            or flat
            or home in others
            or homes.setdefault(home, variant_name) != variant_name
        ):
            raise BundleError(
                f"{origin} gives variant {variant_name!r} no folder of its own; export it again"
            )


def check_outside_bundles(path: Path) -> None:
    """Checks that a file or folder to be written lies outside of every bundle.

    Raises:
        UsageError: it would lie in a bundle, whose files are listed with their hashes.
    """
    for folder in Path(os.path.realpath(path)).parents:
        if is_bundle(folder):
            raise UsageError(
                f"{path} would lie in the bundle {folder}, which no other command may write to; "
                "name another output"
            )


def is_bundle(folder: Path) -> bool:
    """Returns whether a folder holds a sealed manifest; nothing else is checked."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NONBLOCK", 0)  # a named pipe without a writer would block
    try:
        with os.fdopen(os.open(folder / MANIFEST_FILE, flags), "rb") as file:
            is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            return is_file and file.read(len(SEAL_BEGIN)) == SEAL_BEGIN
    except OSError:
        return False


def behind_link(path: Path) -> Path:
    """Returns the folder that a link, `.` or `..` leads to; any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() or path.name in ("", "..") else path


def link_on_the_way(folder: Path, name: str) -> Path | None:
    """Returns the first symbolic link on the way from a bundle's folder to one of its files."""
    path = folder
    for part in PurePosixPath(name).parts:
        path = path / part
        if path.is_symlink():
            return path
    return None


def top_folder(name: str) -> str:
    """Returns the first part of a path in a bundle."""
    return PurePosixPath(name).parts[0]


def is_inside(name: str) -> bool:
    """Returns whether a path is relative and normal: its shortest form, with slashes.

    No part of it is longer than a file system takes.
    """
    parts = name.split("/")
    return not (
        _OUTSIDE_NAMES.search(name)
        or {"", ".", ".."} & set(parts)
        or name == MANIFEST_FILE
        or any(len(os.fsencode(part)) > _MAX_PART_BYTES for part in parts)
    )


def _is_portable(name: str) -> bool:
    """Returns whether a path inside a bundle is so on every system, and not one of our own files.

    Some systems reserve names, and some take characters that look alike for one another.
    """
    plain = unicodedata.normalize("NFKC", name)
    is_own = plain == SIGNATURE_FILE or plain.startswith(".")  # notes and temporary files
    reserved = any(_OF_WINDOWS.fullmatch(part) for part in plain.split("/"))
    return is_inside(plain) and not is_own and not reserved


def _twins(names: Iterable[str]) -> tuple[str, str] | None:
    """Returns two files or folders whose names differ only in case or in their Unicode form."""
    paths: dict[str, str] = {}
    for name in names:
        parts = name.split("/")
        for end in range(1, len(parts) + 1):
            path = "/".join(parts[:end])
            first = paths.setdefault(unicodedata.normalize("NFC", path.casefold()), path)
            if first != path:
                return first, path
    return None


def _referenced(manifest: Manifest) -> Iterator[str]:
    """Yields every path that a manifest uses."""
    for variant in manifest.variants.values():
        yield from _graph_files(variant)
    yield from _referenced_outside_variants(manifest)


def _referenced_outside_variants(manifest: Manifest) -> Iterator[str]:
    yield from (sample.file for sample in manifest.golden)
    if isinstance(manifest.vocabulary, Tokenizer):
        yield manifest.vocabulary.file
    described = (
        manifest.preprocess if isinstance(manifest.preprocess, tuple) else (manifest.preprocess,)
    )
    yield from (part.tokenizer for part in described if isinstance(part, TextInput))


def _graph_files(variant: Variant) -> list[str]:
    specs = (getattr(variant, role.value) for role in GraphRole)
    return [spec.file for spec in specs if spec is not None]

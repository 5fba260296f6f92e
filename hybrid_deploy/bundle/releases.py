"""Installed bundles on a device: one is current, and the one before it is kept to go back to.

    slots/
      current -> 0007      the link that programs open: hybrid-deploy run slots/current photo.png
      0007/                the current bundle
      0006/                the one that was current before

A bundle is copied beside the others and tried before the link is switched, in one step. A process
that is killed leaves the link as it was or switched; the next command removes the rest.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from hybrid_deploy.bundle.atomic_write import (
    disk_errors,
    make_parent,
    remove_temporary,
    staged_folder,
)
from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.lock import exclusive
from hybrid_deploy.bundle.paths import MANIFEST_FILE, SIGNATURE_FILE
from hybrid_deploy.bundle.placement import sync_names
from hybrid_deploy.bundle.signature import Trust
from hybrid_deploy.errors import HybridDeployError, InputError

CURRENT_LINK = "current"
"""Name of the link to the current bundle."""

_RELEASE = re.compile(r"\d{4,}")
_TEMPORARY_LINK = re.compile(r"\.current\.[0-9a-f]{8}")


def install(
    source: Path, slots: Path, health_test: Callable[[Path], None], trust: Trust | None = None
) -> Path:
    """Copies a bundle into the slots of a device, tries it, and makes it current.

    Args:
        source: the bundle; every file is checked.
        slots: folder of the installed bundles; it is made if it does not exist.
        health_test: function of the copy's path that raises an error if it is not to be used.
        trust: which signatures are accepted; None accepts a bundle without one.

    Returns:
        The path of the installed bundle. The bundle that was current stays until the next one.

    Raises:
        InputError: `slots` holds something else, or the source is no bundle.
        BundleError: the source is damaged, or no trusted key signed it.
        HybridDeployError: the disk is full or not writable. What the health test raises passes.
    """
    opened = open_bundle(source, trust=trust)
    make_parent(slots / CURRENT_LINK)
    with exclusive(slots):
        before = current_release(slots)
        _clean(slots, before)
        target = slots / f"{max(_numbers(slots), default=0) + 1:04d}"
        with staged_folder(target) as folder:
            _copy(opened, folder)
            open_bundle(folder, trust=trust)
            health_test(folder)
        try:
            _switch(slots, target)
        except HybridDeployError:
            shutil.rmtree(target, ignore_errors=True)
            raise
        _remove_others(slots, {target, before})
    return target


def roll_back(slots: Path, trust: Trust | None = None) -> Path:
    """Makes the bundle current that was current before; the newer one is removed by `install`.

    Returns:
        The path of the bundle that is current now.

    Raises:
        InputError: there is none, or the slots are none of `install`.
        BundleError: it is damaged, or no trusted key signed it; nothing changes then.
    """
    with exclusive(slots):
        current = current_release(slots)
        if current is None:
            raise InputError(f"{slots} has no installed bundle; see: hybrid-deploy install")
        earlier = [number for number in _numbers(slots) if number < int(current.name)]
        if not earlier:
            raise InputError(f"{slots} has no bundle before {current.name} to go back to")
        target = slots / f"{max(earlier):04d}"
        open_bundle(target, trust=trust)
        _remove_temporary(slots)
        _switch(slots, target)
    return target


def current_release(slots: Path) -> Path | None:
    """Returns the folder of the current bundle; None if nothing was installed yet.

    Raises:
        InputError: `current` is no link to a folder beside it.
    """
    link = slots / CURRENT_LINK
    if not link.is_symlink():
        if link.exists():
            raise InputError(f"{link} is no link of `install`; name another folder")
        return None
    name = os.readlink(link)
    if not _RELEASE.fullmatch(name) or not (slots / name).is_dir():
        raise InputError(f"{link} leads to {name}, which is no installed bundle; remove the link")
    return slots / name


def _copy(bundle: Bundle, folder: Path) -> None:
    """Copies the files that a bundle's manifest lists, the manifest and the signatures."""
    for name in (*bundle.manifest.files, MANIFEST_FILE, SIGNATURE_FILE):
        source, target = bundle.folder / name, folder / name
        if name != SIGNATURE_FILE or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _switch(slots: Path, target: Path) -> None:
    """Lets the link lead to another folder, in one step.

    Raises:
        HybridDeployError: the disk is full or not writable.
    """
    temporary = slots / f".{CURRENT_LINK}.{secrets.token_hex(4)}"
    with disk_errors(slots / CURRENT_LINK):
        temporary.symlink_to(target.name)
        try:
            temporary.replace(slots / CURRENT_LINK)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    sync_names(slots)


def _clean(slots: Path, current: Path | None) -> None:
    """Removes what killed commands left, and the bundles that were rolled back."""
    _remove_temporary(slots)
    newest = 0 if current is None else int(current.name)
    for number in _numbers(slots):
        if number > newest:
            shutil.rmtree(slots / f"{number:04d}", ignore_errors=True)


def _remove_temporary(slots: Path) -> None:
    """Removes the copies and links that killed commands left."""
    remove_temporary(slots)
    for path in slots.iterdir():
        if _TEMPORARY_LINK.fullmatch(path.name) and path.is_symlink():
            path.unlink()


def _remove_others(slots: Path, kept: set[Path | None]) -> None:
    for number in _numbers(slots):
        path = slots / f"{number:04d}"
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _numbers(slots: Path) -> list[int]:
    """Returns the numbers of the installed bundles."""
    return [
        int(path.name)
        for path in slots.iterdir()
        if _RELEASE.fullmatch(path.name)
        and path.name == f"{int(path.name):04d}"
        and (path / MANIFEST_FILE).is_file()
        and not path.is_symlink()
    ]

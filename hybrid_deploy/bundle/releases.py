"""Installed bundles on a device: one is current, and the one before it is kept to go back to.

    slots/
      current -> 0007      the link that programs open: hybrid-deploy run slots/current photo.png
      0007/                the current bundle
      0006/                the one that was current before

A bundle is copied beside the others and tried before the link is switched, in one step. A process
that is killed leaves the link as it was or switched; the next command removes the rest. Nothing is
removed that `release_record` does not know as a folder of `install`, and none of its folders while
no link says which one is current.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from hybrid_deploy.bundle.atomic_write import disk_errors, make_parent, write_file
from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.bundle_file import read_small_file
from hybrid_deploy.bundle.lock import exclusive
from hybrid_deploy.bundle.manifest import MAX_MANIFEST_BYTES, decode_manifest
from hybrid_deploy.bundle.paths import MANIFEST_FILE, SIGNATURE_FILE, check_outside_bundles
from hybrid_deploy.bundle.placement import sync_names
from hybrid_deploy.bundle.release_record import Releases, is_release_name
from hybrid_deploy.bundle.signature import MAX_SIGNATURE_BYTES, Trust
from hybrid_deploy.errors import BundleError, HybridDeployError, InputError
from hybrid_deploy.temporary_names import temporaries_beside, temporary_name

CURRENT_LINK = "current"
"""Name of the link to the current bundle."""

_FILE_MODE = 0o666  # less what the umask takes: the service that runs may be another user


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
        InputError: `slots` holds something else, the source is in it, or the source is no bundle.
        UsageError: `slots` is a bundle, or lies in one.
        BundleError: the source is damaged, or no trusted key signed it.
        HybridDeployError: the disk is full or not writable. What the health test raises passes.
    """
    _check_slots(slots)
    _check_outside(source, slots)
    opened = open_bundle(source, trust=trust)
    make_parent(slots / CURRENT_LINK)
    with exclusive(slots, inside=True):
        before = current_release(slots)
        releases = Releases(slots, before)
        _remove_temporary_links(slots)
        kept = releases.remove_newer(before)
        try:
            release = _tried_copy(opened, releases, health_test, trust)
            _switch(slots, release)
        except (Exception, KeyboardInterrupt):
            _tidy(releases, {*kept, current_release(slots)})  # an interrupt may come after a switch
            raise
        _tidy(releases, {release, *(kept if before is None else {before})})
    return release


def roll_back(slots: Path, trust: Trust | None = None) -> Path:
    """Makes the bundle current that was current before; the newer one is removed by `install`.

    Returns:
        The path of the bundle that is current now.

    Raises:
        InputError: there is none, or the slots are none of `install`.
        UsageError: `slots` is a bundle, or lies in one.
        BundleError: it is damaged, or no trusted key signed it; nothing changes then.
        HybridDeployError: the slots are not writable.
    """
    _check_slots(slots)
    with exclusive(slots, inside=True):
        current = current_release(slots)
        if current is None:
            raise InputError(_without_current(slots))
        releases = Releases(slots, current)
        target = releases.before(current)
        if target is None:
            raise InputError(f"{slots} has no bundle before {current.name} to go back to")
        open_bundle(target, trust=trust)
        _remove_temporary_links(slots)
        _save_if_possible(releases)  # a full disk must not keep the way back
        _switch(slots, target)
    return target


def current_release(slots: Path) -> Path | None:
    """Returns the folder of the current bundle; None if there is no link to one.

    Raises:
        InputError: `current` is no link to a folder beside it.
    """
    link = slots / CURRENT_LINK
    if not link.is_symlink():
        if link.exists():
            raise InputError(f"{link} is no link of `install`; name another folder")
        return None
    for target in (slots / os.readlink(link), Path(os.path.realpath(link))):
        if is_release_name(target.name) and target.is_dir() and target.parent.samefile(slots):
            return slots / target.name
    raise InputError(
        f"{link} leads to {os.readlink(link)}, which is no installed bundle of {slots}; "
        f"{_way_back(slots)}"
    )


def _without_current(slots: Path) -> str:
    """Returns what to do in slots without a link to the current bundle."""
    if _newest(slots) is None:
        return f"{slots} has no installed bundle; see: hybrid-deploy install"
    return f"{slots / CURRENT_LINK} is missing, so none is current; {_way_back(slots)}"


def _way_back(slots: Path) -> str:
    """Returns how to make an installed bundle current; nothing is removed for it."""
    newest = _newest(slots)
    if newest is None:
        return "name another folder"
    return f"let it lead to one that is: ln -sfn {newest.name} {slots / CURRENT_LINK}"


def _newest(slots: Path) -> Path | None:
    """Returns the newest installed bundle; None if there is none."""
    beside = slots.iterdir() if slots.is_dir() else ()
    releases = [p for p in beside if is_release_name(p.name) and (p / MANIFEST_FILE).is_file()]
    return max(releases, key=lambda path: int(path.name), default=None)


def _check_slots(slots: Path) -> None:
    """Checks that a folder can be that of installed bundles, or does not exist yet.

    Raises:
        InputError: it is a file.
        UsageError: it is a bundle, or lies in one.
    """
    check_outside_bundles(slots / CURRENT_LINK)
    if slots.exists() and not slots.is_dir():
        raise InputError(f"{slots} is a file, a folder of installed bundles was expected")


def _check_outside(source: Path, slots: Path) -> None:
    """Checks that a bundle is none of the installed ones, whatever path leads to it.

    Raises:
        InputError: it lies in the slots.
    """
    if not slots.is_dir() or not source.exists():
        return
    resolved = Path(os.path.realpath(source))
    own = [slots, *(path for path in slots.iterdir() if is_release_name(path.name))]
    for folder in (resolved, *resolved.parents):
        if any(path.exists() and path.samefile(folder) for path in own):
            raise InputError(
                f"{source} lies in {slots}, where `install` removes bundles; "
                "copy it to another folder, and install it from there"
            )


def _tried_copy(
    bundle: Bundle, releases: Releases, health_test: Callable[[Path], None], trust: Trust | None
) -> Path:
    """Returns the release into which a bundle was copied, after it was checked and tried."""
    folder = releases.begin()
    with disk_errors(folder):
        _copy(bundle, folder)
    open_bundle(folder, trust=trust)
    health_test(folder)
    return releases.finish(folder)


def _copy(bundle: Bundle, folder: Path) -> None:
    """Copies the manifest of a bundle, the files that it lists and the signatures.

    The manifest comes first, so that the next command knows whose the files are that a kill leaves.

    Raises:
        BundleError: one of them is a link, is no file, is too large or was changed.
        OSError: the disk is full or not writable.
    """
    manifest = read_small_file(bundle.folder, MANIFEST_FILE, MAX_MANIFEST_BYTES)
    if decode_manifest(manifest, str(bundle.folder / MANIFEST_FILE)) != bundle.manifest:
        raise BundleError(f"{bundle.folder} was changed while it was copied; install it again")
    write_file(folder / MANIFEST_FILE, manifest)
    for name in bundle.manifest.files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with closing(bundle.open_file(name)) as file:
            file.copy_to(target, _FILE_MODE)
    if os.path.lexists(bundle.folder / SIGNATURE_FILE):
        signatures = read_small_file(bundle.folder, SIGNATURE_FILE, MAX_SIGNATURE_BYTES)
        (folder / SIGNATURE_FILE).write_bytes(signatures)


def _tidy(releases: Releases, kept: set[Path | None]) -> None:
    """Removes the other releases; an error is none of the update, which is done or refused."""
    with suppress(OSError):
        releases.keep_only(kept)
    _save_if_possible(releases)


def _save_if_possible(releases: Releases) -> None:
    """Writes the record; where that fails, the next command finds out what is no longer there."""
    with suppress(HybridDeployError, OSError):
        releases.save()


def _switch(slots: Path, target: Path) -> None:
    """Lets the link lead to another folder, in one step.

    Raises:
        HybridDeployError: the disk is full or not writable.
    """
    temporary = slots / temporary_name(CURRENT_LINK, "linking")
    with disk_errors(slots / CURRENT_LINK):
        temporary.symlink_to(target.name)
        try:
            temporary.replace(slots / CURRENT_LINK)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    sync_names(slots)


def _remove_temporary_links(slots: Path) -> None:
    """Removes the links that killed commands left."""
    for path in temporaries_beside(slots / CURRENT_LINK, "linking"):
        if path.is_symlink():
            path.unlink()

"""Gives a complete file or folder its final name, over nothing that must stay.

A free name is taken in one step that fails if somebody else has taken it meanwhile. A folder that
may be replaced exchanges its name with the new one in one step, where the file system can do that
(Linux, renameat2); elsewhere the two change places by two renames, and `recover` undoes the first
one if the process was killed between them. What was replaced is looked at again under its new name,
where nobody adds to it any more, and gets its name back if it must stay.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hybrid_deploy.errors import InputError, OutputExistsError
from hybrid_deploy.temporary_folders import is_mount_point, remove_tree
from hybrid_deploy.temporary_names import Kind, temporary_name

_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2  # linux/fs.h
_AT_FDCWD = -100  # fcntl.h
_NO_RENAMEAT2 = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Check = Callable[[Path, Path], None]
"""Raises an error if the folder at the first path must stay; messages call it by the second."""


def check_file_output(target: Path, *, force: bool) -> None:
    """Checks that a file can be written to a path: nothing is there, or a file to be replaced.

    Raises:
        InputError: a folder, a link, a pipe or a device is there; none is ever replaced.
        OutputExistsError: a file is there, and `force` is false.
    """
    kind = _kind(target)
    if kind == "a folder":
        raise InputError(f"{target} is a folder; name a file in it")
    if kind not in (None, "a file"):
        raise InputError(f"{target} is {kind}, a regular file was expected; name another output")
    if kind is not None and not force:
        raise OutputExistsError(target)


def check_folder_output(target: Path, *, force: bool, check: Check | None = None) -> None:
    """Checks that a folder can be placed at a path: nothing is there, or a folder to be replaced.

    Args:
        target: the path.
        force: whether a folder may be replaced.
        check: which folders must stay even so; None replaces any.

    Raises:
        OutputExistsError: something is there, and `force` is false.
        InputError: something else than a folder is there, or a mount point. What the check raises
            passes.
    """
    kind = _kind(target)
    if kind is None:
        return
    if not force:
        raise OutputExistsError(target)
    if kind != "a folder":
        raise InputError(f"{target} is {kind}, a folder was expected; name another output")
    if is_mount_point(target):
        raise InputError(f"{target} is a mount point, which is not replaced; name a folder in it")
    if check is not None:
        check(target, target)


def place_file(made: Path, target: Path, *, force: bool) -> None:
    """Gives a file the name `target`, and flushes the names to disk.

    Raises:
        OutputExistsError: a file has that name, and `force` is false.
        InputError: something else than a file has that name.
    """
    try:
        _take_name(made, target)
    except FileExistsError:
        check_file_output(target, force=force)
        made.replace(target)
    sync_names(target.parent)


def place_folder(made: Path, target: Path, *, force: bool, check: Check | None = None) -> None:
    """Gives a folder the name `target`; a folder that had that name is deleted.

    Args:
        made: the complete folder, beside `target`.
        target: its final path.
        force: whether a folder of that name may be replaced.
        check: which folders must stay even so; None replaces any.

    Raises:
        OutputExistsError: something has that name, and `force` is false.
        InputError: something has that name that is never replaced. What the check raises passes.
    """
    try:
        _take_name(made, target)
    except FileExistsError:
        check_folder_output(target, force=force, check=check)
        _replace_folder(made, target, check or _any_folder)
    sync_names(target.parent)


def make_temporary(target: Path, kind: Kind) -> Path:
    """Makes a folder beside `target`, with the mode that the user's umask leaves to any folder."""
    folder = target.parent / temporary_name(target.name, kind)
    folder.mkdir()
    return folder


def sync_names(folder: Path) -> None:
    """Flushes the names in a folder to disk, after one of them was given to something else.

    An error changes nothing for readers: if the power fails then, they find what was there before.
    """
    with suppress(OSError):
        sync(folder)


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _any_folder(folder: Path, name: Path) -> None:
    """Lets any folder be replaced."""


def _kind(path: Path) -> str | None:
    """Returns what lies at a path, a link not followed; None if nothing does."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _KINDS.get(stat.S_IFMT(mode), "no regular file")


def _take_name(made: Path, target: Path) -> None:
    """Renames a file or folder to a name that nobody has.

    Raises:
        FileExistsError: somebody has it.
    """
    if sys.platform == "win32":
        made.rename(target)  # which replaces nothing there
        return
    code = _renameat2(made, target, _RENAME_NOREPLACE)
    if code in _NO_RENAMEAT2:
        _take_in_two_steps(made, target)
    elif code:
        raise OSError(code, os.strerror(code), str(target))


def _take_in_two_steps(made: Path, target: Path) -> None:
    """Makes an empty file or folder of the name, which fails if somebody has it, and replaces it.

    A folder that is no longer empty is not replaced by the system.
    """
    is_folder = made.is_dir()
    target.mkdir() if is_folder else target.touch(exist_ok=False)
    try:
        made.replace(target)
    except OSError:
        with suppress(OSError):
            target.rmdir() if is_folder else target.unlink()
        raise


def _replace_folder(made: Path, target: Path, check: Check) -> None:
    """Gives a folder the name of another one, which is deleted unless the check refuses it."""
    if not _exchange(made, target):
        _replace_in_two_renames(made, target, check)
        return
    try:
        check(made, target)
    except BaseException:
        if not _exchange(made, target):
            raise InputError(f"{target} could not be placed; what was there is {made}") from None
        raise
    remove_tree(made)


def _replace_in_two_renames(made: Path, target: Path, check: Check) -> None:
    retired = make_temporary(target, "retired")
    aside = retired / target.name
    try:
        target.rename(aside)
    except OSError:
        retired.rmdir()
        raise
    try:
        check(aside, target)
        _take_name(made, target)
    except BaseException:
        _take_name(aside, target)
        retired.rmdir()
        raise
    remove_tree(retired)


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges the names of two folders in one step; returns whether the system can do that."""
    return _renameat2(first, second, _RENAME_EXCHANGE) == 0


def _renameat2(source: Path, target: Path, flag: int) -> int:
    """Calls renameat2(2), and returns its error number; ENOSYS where there is no such call."""
    library = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    renameat2 = getattr(library, "renameat2", None)
    if renameat2 is None:
        return errno.ENOSYS
    paths = os.fsencode(source), os.fsencode(target)
    failed: int = renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], flag)
    return ctypes.get_errno() if failed else 0

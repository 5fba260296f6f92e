"""Atomic writes of files and folders: a reader sees the complete output or none."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybrid_deploy.errors import HybridDeployError, InputError, OutputExistsError


@contextmanager
def staged_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yields an empty folder, and renames it to `target` when the block ends without an error.

    The folder is created beside `target`, and flushed to disk before it is renamed. When the block
    raises an error, the folder is deleted and `target` stays as it was.

    Raises:
        OutputExistsError: `target` exists and `force` is false.
        InputError: `target` is a file.
        HybridDeployError: the disk is full or not writable.
    """
    if target.exists() and not force:
        raise OutputExistsError(target)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file, a folder was expected; name another output")
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with _disk_errors(target):
            yield staging
            _sync_tree(staging)
            staging.chmod(0o755)
            _replace_folder(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_file(target: Path, data: bytes) -> None:
    """Replaces the content of `target` in one step: by a rename, after it is flushed to disk.

    Raises:
        HybridDeployError: the disk is full or not writable.
    """
    with _disk_errors(target):
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(target)
            _sync(target.parent)
        finally:
            Path(name).unlink(missing_ok=True)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full; free some space and run the command again"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = "no permission to write there; name another output"
        else:
            raise
        raise HybridDeployError(f"{target} was not written: {reason}") from error


def _replace_folder(staging: Path, target: Path) -> None:
    retired = None
    if target.exists():
        retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        target.rename(retired / target.name)
    try:
        staging.rename(target)
    except OSError:
        if retired is not None:
            (retired / target.name).rename(target)
        raise
    finally:
        if retired is not None:
            shutil.rmtree(retired, ignore_errors=True)
    _sync(target.parent)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Raises the errors of the operating system, and of the RAM, as errors of this package."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from hybrid_deploy.errors import HybridDeployError, InputError

_NAME_ERRORS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EILSEQ)


def full_disk_reason(error: OSError) -> str | None:
    """Returns why no more can be written, and what to do; None for an error of another kind."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and run the command again"
    if error.errno == errno.EFBIG:
        return "a file would be larger than the system allows; see ulimit -f"
    return None


def _line_of(error: OSError) -> str:
    """Returns the line for an error of the operating system: what failed, and what to do."""
    if reason := full_disk_reason(error):
        return reason
    if error.filename is None and error.errno == errno.ENOENT and _is_working_folder_gone():
        return "the working folder was deleted; change to another folder, and run it again"
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}; check the path and its permissions"


def _is_working_folder_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def typed(error: OSError | MemoryError) -> HybridDeployError:
    """Returns the error of this package for one of the system: a name that no file has, or else."""
    if isinstance(error, MemoryError):
        return HybridDeployError(
            "there is not enough RAM for this; give smaller inputs, or close other programs"
        )
    kind = InputError if error.errno in _NAME_ERRORS else HybridDeployError
    return kind(_line_of(error))


@contextmanager
def typed_errors() -> Iterator[None]:
    """Raises errors of the system as errors of this package; it decorates public functions too.

    Raises:
        InputError: a name that no file can have was given.
        HybridDeployError: the system refused something else, or the RAM is too small.
    """
    try:
        yield
    except (OSError, MemoryError) as error:
        raise typed(error) from error

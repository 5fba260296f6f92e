"""Input files of the user: only regular files are opened, and every failure names its file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybrid_deploy.errors import HybridDeployError, InputError

_MOST_CHARACTERS = 200


def check_file(path: Path) -> None:
    """Checks that a path is a regular file, or a link to one, before it is opened.

    A pipe would block its reader, and a device may never end.

    Raises:
        InputError: it is something else, or there is nothing, or the system does not say; the
            message says which.
    """
    with read_errors(path, "cannot be opened"):
        if not path.is_file():
            raise InputError(f"{path} {_problem(path)}")


def _problem(path: Path) -> str:
    """Returns why a path is no regular file, as the end of a sentence."""
    if path.is_dir():
        return "is no file: it is a folder"
    if path.exists():
        return "is no file: it is a pipe, a socket or a device"
    return "is a link to a file that does not exist" if path.is_symlink() else "does not exist"


@contextmanager
def read_errors(path: Path | str, problem: str) -> Iterator[None]:
    """Raises whatever the readers of a file raise as an error that names the file.

    Errors of this package pass unchanged.

    Args:
        path: the file, or the names of several.
        problem: what is wrong with the file then, such as `is a damaged image`.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        yield
    except HybridDeployError:
        raise
    except MemoryError as error:
        raise InputError(f"{path} needs more RAM than there is; give a smaller one") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            reason = error.strerror or _reason_of(error)
            raise InputError(
                f"{path} cannot be read: {reason}; check the path and its permissions"
            ) from error
        raise InputError(f"{path} {problem}: {_reason_of(error)}") from error


def _reason_of(error: Exception) -> str:
    """Returns the message of an exception as one short line; its type if it has none."""
    return " ".join(str(error).split())[:_MOST_CHARACTERS] or type(error).__name__

"""Functions that a user names on the command line, imported from modules of the user."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybrid_deploy.errors import HybridDeployError, UsageError


def import_function(module_name: str, function_name: str) -> Callable[..., Any]:
    """Returns a function of a module; modules in the working directory are found too.

    Raises:
        UsageError: the module does not exist, fails while it is imported, or has no such function.
    """
    if "/" in module_name or os.path.isfile(module_name):
        raise UsageError(
            f"{module_name} is the path of a file, and a module is named without: write "
            f"{_module_of(module_name)}:{function_name}"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with one_line_failures(f"importing {module_name}"):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise
        raise UsageError(f"there is no module {module_name!r}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"{module_name} has no function {function_name!r}")
    checked: Callable[..., Any] = function
    return checked


def _module_of(path: str) -> str:
    """Returns the module that a file below the working directory holds; of others the last part."""
    parts = Path(os.path.relpath(path)).with_suffix("").parts
    return parts[-1] if ".." in parts else ".".join(parts)


@contextmanager
def one_line_failures(what: str) -> Iterator[None]:
    """Raises a UsageError in place of an exception that a function of the user raises.

    A package that is not installed passes: the command line names how to install it.

    Args:
        what: what is done, as the subject of the message.

    Raises:
        UsageError: the function failed; the message names its line.
    """
    try:
        yield
    except (HybridDeployError, ModuleNotFoundError):
        raise
    except SystemExit as request:
        code = "" if request.code is None else f"{request.code!r}"
        raise UsageError(
            f"{_last_line(request)}: {what} ends the program by sys.exit({code}); a function of "
            "the command line has to return"
        ) from request
    except Exception as error:
        if isinstance(error, SyntaxError):
            line = f"{error.filename}:{error.lineno}"
        else:
            line = _last_line(error)
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise UsageError(f"{line}: {what} fails: {type(error).__name__}: {first}") from error


def _last_line(error: BaseException) -> str:
    """Returns the line that raised an exception, as `file:line`."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"

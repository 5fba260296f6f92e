"""Functions that a user names on the command line, imported from modules of the user."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hybrid_deploy.errors import HybridDeployError, UsageError


def import_function(module_name: str, function_name: str) -> Callable[..., Any]:
    """Returns a function of a module; modules in the working directory are found too.

    Raises:
        UsageError: the module does not exist, fails while it is imported, or has no such function.
    """
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
    except Exception as error:
        if isinstance(error, SyntaxError):
            line = f"{error.filename}:{error.lineno}"
        else:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            line = f"{frame.filename}:{frame.lineno}"
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise UsageError(f"{line}: {what} fails: {type(error).__name__}: {first}") from error

"""Functions that a user names on the command line, imported from modules of the user."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from hybrid_deploy.errors import UsageError


def import_function(module_name: str, function_name: str) -> Callable[..., Any]:
    """Returns a function of a module; modules in the working directory are found too.

    Raises:
        UsageError: the module does not exist, or has no such function.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
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

"""Turns every exception of an export into one typed line, which names the user's line if it can."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hybrid_deploy.errors import ExportError, HybridDeployError, UnsupportedModelError
from hybrid_deploy.export.trace.refusal import first_line, is_user_file

_CALLERS = {
    ("/export/model/interface.py", "forward"),
    ("/export/model/example_run.py", "check_example_run"),
    ("/export/lowering/custom_step.py", "forward"),
    ("/export/lowering/custom_step.py", "_run_once"),
}
"""Functions that call the methods of the user's model, by the end of their file's path."""

_INSTALLED = ("/site-packages/", "/dist-packages/")
_PACKAGE = f"{Path(__file__).parents[2]}/"  # through the link hybrid_deploy/export
_OTHER_DTYPE = re.compile(r"dtype|scalar type|same type|\b(Half|Double|BFloat16|float64)\b")
_OTHER_DEVICE = re.compile(r"same device|on (cuda|meta)|device meta|(cuda|mps):\d", re.IGNORECASE)


@contextmanager
def one_line_failures(callers_own: Sequence[Exception] = ()) -> Iterator[None]:
    """Raises a typed error in place of any exception that is none.

    An OSError or ImportError of the exporter itself passes: a full disk and a missing package are
    no failure of the model.

    Args:
        callers_own: exceptions that pass as they are; functions of the caller add theirs to it.

    Raises:
        UnsupportedModelError: code of the user's model raised the exception.
        ExportError: PyTorch, the ONNX packages or the exporter raised it.
    """
    try:
        yield
    except HybridDeployError:
        raise
    except Exception as error:
        if any(error is own for own in callers_own):
            raise
        line, method = _user_frame(error)
        if line:
            raise UnsupportedModelError(
                f"{line}: {method} fails: {type(error).__name__}: {first_line(error)}"
                f"{_remedy(str(error))}"
            ) from error
        if isinstance(error, (OSError, ImportError)):
            raise
        raise ExportError(
            "the model cannot be exported: an internal step failed with "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def _user_frame(error: BaseException) -> tuple[str, str]:
    """Returns the user's line that failed, as `file:line`, and the method it belongs to.

    Both are empty if no line is the user's. Lines of installed packages count below a method of
    the model only: the ONNX packages fail in lines of their own.
    """
    line, method, in_model = "", "a function", False
    for frame in traceback.extract_tb(error.__traceback__):
        if any(frame.filename.endswith(end) and frame.name == name for end, name in _CALLERS):
            in_model = True
        elif _is_users(frame.filename, in_model):
            if not line:
                method = f"{frame.name}()"
            line = f"{frame.filename}:{frame.lineno}"
    return line, method


def _is_users(file: str, in_model: bool) -> bool:
    if file.startswith(_PACKAGE):
        return "/export/reference/" in file
    if any(folder in file for folder in _INSTALLED):
        return in_model and is_user_file(file)
    return is_user_file(file)


def _remedy(message: str) -> str:
    if _OTHER_DEVICE.search(message):
        return "; an export runs on the CPU: make no tensors on another device"
    if _OTHER_DTYPE.search(message):
        return "; model and inputs must be float32: call .float() on what is not"
    return ""

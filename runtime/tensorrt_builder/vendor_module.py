"""Loads the vendor's Python module, `tensorrt` or `tensorrt_rtx`; the same code uses both.

Enum members are looked up by name, because their integers differ between versions.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from hybrid_deploy.errors import BackendError, BuildError, MissingDependencyError
from hybrid_deploy.runtime.tensorrt_builder.layer_report import FACT_PREFIXES
from hybrid_deploy.target import Flavour

_MODULES = {Flavour.RTX: "tensorrt_rtx", Flavour.TENSORRT: "tensorrt"}
_PACKAGES = {Flavour.RTX: "tensorrt-rtx", Flavour.TENSORRT: "tensorrt"}
_MESSAGE_LIMIT = 320
_NO_REASON = "TensorRT gave no reason"


class MessageLog(Protocol):
    """TensorRT's messages since the last `clear`.

    Attributes:
        warnings: messages of severity WARNING, the oldest first.
        errors: messages of severity ERROR or INTERNAL_ERROR, the oldest first.
        facts: messages that describe a finished engine, the oldest first; see `FACT_PREFIXES`.
    """

    warnings: list[str]
    errors: list[str]
    facts: list[str]

    def clear(self) -> None:
        """Deletes all messages."""


@dataclass(frozen=True)
class TensorRT:
    """A loaded vendor module.

    Attributes:
        flavour: flavour of the module.
        version: version of the module, such as `1.7.1.116`.
        module: the Python module, untyped.
        log: logger that every builder, parser and runtime must get.
    """

    flavour: Flavour
    version: str
    module: Any
    log: MessageLog

    def member(self, enum: str, name: str) -> Any:
        """Returns an enum member by name.

        Raises:
            BuildError: this version of TensorRT has no such member.
        """
        members: dict[str, Any] = getattr(getattr(self.module, enum, None), "__members__", {})
        if name not in members:
            product = _PACKAGES[self.flavour]
            raise BuildError(f"{product} {self.version} has no {enum} {name}; install a newer one")
        return members[name]


def load_tensorrt(flavour: Flavour | None) -> TensorRT:
    """Imports a flavour of TensorRT and returns it.

    Args:
        flavour: flavour to import; None takes TensorRT if it is installed, else TensorRT-RTX.

    Raises:
        MissingDependencyError: the flavour is not installed.
        BackendError: the flavour is installed but does not load.
    """
    if flavour is not None:
        return _load(flavour)
    try:
        return _load(Flavour.TENSORRT)
    except MissingDependencyError as missing:
        try:
            return _load(Flavour.RTX)
        except MissingDependencyError:
            raise missing from None


@cache
def _load(flavour: Flavour) -> TensorRT:
    name = _MODULES[flavour]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise BackendError(f"{name} is installed but does not load: {error}") from error
        raise MissingDependencyError(_PACKAGES[flavour], flavour.value) from error
    except (ImportError, OSError) as error:
        reason = one_line(str(error))
        raise BackendError(f"{name} is installed but does not load: {reason}") from error
    return TensorRT(flavour, str(module.__version__), module, _message_log(module))


def _message_log(trt: Any) -> MessageLog:
    """Returns the logger of this process.

    TensorRT stores a bare pointer to the first logger that it gets and ignores later ones; a freed
    logger crashes it. `_load` is cached, so this logger lives as long as the process.
    """
    severity = trt.ILogger.Severity
    fatal = (severity.INTERNAL_ERROR, severity.ERROR)

    class Log(trt.ILogger):  # type: ignore[misc]  # the vendor module is untyped
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.warnings: list[str] = []
            self.errors: list[str] = []
            self.facts: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in fatal:
                self.errors.append(message)
            elif level == severity.WARNING:
                self.warnings.append(message)
            elif message.startswith(FACT_PREFIXES):
                self.facts.append(message)

        def clear(self) -> None:
            self.warnings.clear()
            self.errors.clear()
            self.facts.clear()

    log: MessageLog = Log()
    return log


def one_line(message: str) -> str:
    """Returns a message of TensorRT as one line, without source locations and not too long."""
    text = " ".join(message.split())
    text = re.sub(r"^I\w+::\w+: Error Code \d+: ", "", text)
    text = re.sub(r"\s*\(?\bIn \w+ at \S+:\d+\b", "", text)
    text = re.sub(r"\[\w+\.\w+:\d+: \w+\] ", "", text)
    return text if len(text) <= _MESSAGE_LIMIT else text[: _MESSAGE_LIMIT - 3] + "..."


def last_error(log: MessageLog) -> str:
    """Returns the last error of a log as one line."""
    return one_line(log.errors[-1]) if log.errors else _NO_REASON

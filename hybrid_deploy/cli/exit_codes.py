"""The one place that turns errors into exit codes, and that loads commands when they are called.

0 the work is done, 1 it failed, 2 the request is wrong, 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import os
import traceback
from typing import Any

import click

from hybrid_deploy import __version__
from hybrid_deploy.cli import interrupts
from hybrid_deploy.cli.output import log, log_lines
from hybrid_deploy.errors import HybridDeployError, MissingDependencyError
from hybrid_deploy.printable import printable
from hybrid_deploy.system_errors import typed

_COMMANDS = (
    "export",
    "inspect",
    "verify",
    "keygen",
    "sign",
    "install",
    "rollback",
    "calibrate",
    "quantize",
    "build",
    "run",
    "profile",
    "compare",
    "quickstart",
    "doctor",
)
_EXTRAS = {
    "jiwer": "report",
    "ml_dtypes": "calibrate",
    "onnx": "calibrate",
    "onnx_ir": "calibrate",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "safetensors": "export",
    "sklearn": "reference",
    "sympy": "export",
    "torch": "export",
}
"""Packages that a command may need, with the extra of hybrid-deploy that installs each."""

TRACEBACK = "HYBRID_DEPLOY_TRACEBACK"
"""Environment variable: with 1 an unexpected exception prints its traceback."""


class CommandFailure(click.ClickException):
    """An error that ends a command with one line on stderr.

    Args:
        message: text of the error; line breaks become spaces.
        exit_code: exit code of the process.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(printable(" ".join(message.split())))
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        """Prints the line on stderr."""
        log(f"error: {self.message}")


class CommandGroup(click.Group):
    """The group of all commands, which are loaded when they are called.

    Its `make_context`, which prints help and version, and `invoke` turn errors into exit codes.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of the commands, in the order in which a user needs them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns the command of that name, after importing its module; None if there is none."""
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"hybrid_deploy.cli.commands.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **more: Any,
    ) -> click.Context:
        """Returns the context of a command line.

        Raises:
            CommandFailure: the help or the version could not be printed.
        """
        try:
            return super().make_context(info_name, args, parent, **more)
        except OSError as error:
            raise _failure_of(error, click.Context(self, parent, info_name)) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command.

        Raises:
            CommandFailure: the command ended with an exception, expected or not.
        """
        try:
            with interrupts.raised():
                return super().invoke(ctx)
        except Exception as error:
            if interrupts.received():
                raise _interruption() from error
            raise _failure_of(error, ctx) from error
        except KeyboardInterrupt as error:
            raise _interruption() from error


_BY_CLICK = (errno.EPIPE,)
"""Errors of the system that click answers itself: nobody reads the output any more."""

_OF_CLICK = (click.ClickException, click.exceptions.Exit, click.Abort)


def _interruption() -> CommandFailure:
    return CommandFailure(interrupts.MESSAGE, interrupts.INTERRUPTED)


def _failure_of(error: Exception, ctx: click.Context) -> Exception:
    """Returns what ends a command in place of an exception; click answers some of them itself."""
    if isinstance(error, HybridDeployError):
        return CommandFailure(str(error), error.exit_code)
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else ctx.command_path
        return CommandFailure(f"{error.format_message()} See '{path} --help'.", error.exit_code)
    if isinstance(error, ModuleNotFoundError):
        return CommandFailure(_missing(error), MissingDependencyError.exit_code)
    if isinstance(error, _OF_CLICK) or (isinstance(error, OSError) and error.errno in _BY_CLICK):
        return error
    if isinstance(error, (OSError, MemoryError)):
        return CommandFailure(str(typed(error)), typed(error).exit_code)
    return CommandFailure(_unexpected(error, ctx), 1)


def _missing(error: ModuleNotFoundError) -> str:
    package = (error.name or "").split(".")[0]
    if package in _EXTRAS:
        return str(MissingDependencyError(package, _EXTRAS[package]))
    return f"{error}; install it and run the command again"


def _unexpected(error: Exception, ctx: click.Context) -> str:
    """Returns the line for an exception that is a fault of this toolkit.

    Its traceback goes to stderr first if the environment asks for it.
    """
    if os.environ.get(TRACEBACK) == "1":
        log_lines("".join(traceback.format_exception(error)).rstrip())
        more = "with the lines above"
    else:
        more = f"with the traceback that {TRACEBACK}=1 prints"
    command = f"{ctx.command_path} {ctx.invoked_subcommand or ''}".strip()
    return (
        f"{command} failed unexpectedly with {type(error).__name__}: "
        f"{' '.join(str(error).split())[:300] or 'no message'}; this is a fault of hybrid-deploy "
        f"{__version__}: please report it, {more}"
    )

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
from hybrid_deploy.errors import HybridDeployError, MissingDependencyError

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
INTERRUPTED = 130
"""Exit code after a KeyboardInterrupt."""

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
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        """Prints the line on stderr."""
        click.echo(f"error: {self.message}", err=True)


class CommandGroup(click.Group):
    """The group of all commands, which are loaded when they are called.

    Its `invoke` turns errors into exit codes.
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

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command.

        Raises:
            CommandFailure: the command ended with an exception, expected or not.
        """
        try:
            return super().invoke(ctx)
        except HybridDeployError as error:
            raise CommandFailure(str(error), error.exit_code) from error
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else ctx.command_path
            message = f"{error.format_message()} See '{path} --help'."
            raise CommandFailure(message, error.exit_code) from error
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if package in _EXTRAS:
                message = str(MissingDependencyError(package, _EXTRAS[package]))
            else:
                message = f"{error}; install it and run the command again"
            raise CommandFailure(message, MissingDependencyError.exit_code) from error
        except OSError as error:
            if error.errno in _BY_CLICK:
                raise
            raise CommandFailure(_of_the_system(error), 1) from error
        except KeyboardInterrupt as error:
            raise CommandFailure("interrupted, nothing was half-written", INTERRUPTED) from error
        except _OF_CLICK:
            raise
        except Exception as error:
            raise CommandFailure(_unexpected(error, ctx), 1) from error


_BY_CLICK = (errno.EPIPE,)
"""Errors of the system that click answers itself: nobody reads the output any more."""

_OF_CLICK = (click.ClickException, click.exceptions.Exit, click.Abort)


def _of_the_system(error: OSError) -> str:
    """Returns the line for an error of the operating system."""
    from hybrid_deploy.bundle.atomic_write import full_disk_reason

    if reason := full_disk_reason(error):
        return reason
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}; check the path and its permissions"


def _unexpected(error: Exception, ctx: click.Context) -> str:
    """Returns the line for an exception that is a fault of this toolkit.

    Its traceback goes to stderr first if the environment asks for it.
    """
    if os.environ.get(TRACEBACK) == "1":
        click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)
        more = "with the lines above"
    else:
        more = f"with the traceback that {TRACEBACK}=1 prints"
    command = f"{ctx.command_path} {ctx.invoked_subcommand or ''}".strip()
    return (
        f"{command} failed unexpectedly with {type(error).__name__}: "
        f"{' '.join(str(error).split())[:300] or 'no message'}; this is a fault of hybrid-deploy "
        f"{__version__}: please report it, {more}"
    )

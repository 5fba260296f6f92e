"""The command line: one file per command, errors become exit codes here and nowhere else.

Exit codes: 0 done, 1 the work failed, 2 the request is wrong, 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any

import click

from hybrid_deploy import __version__
from hybrid_deploy.errors import HybridDeployError, MissingDependencyError

_COMMANDS = (
    "export",
    "inspect",
    "verify",
    "calibrate",
    "quantize",
    "build",
    "run",
    "profile",
    "compare",
    "quickstart",
    "doctor",
)
_INTERRUPTED = 130
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
"""Which extra installs a package that a command may need."""


class CommandFailure(click.ClickException):
    """An error that ends a command, with one line on stderr."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        """Prints the line."""
        click.echo(f"error: {self.message}", err=True)


class CommandGroup(click.Group):
    """Loads a command's module when it is called, and turns errors into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the commands in the order of the work."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Loads one command."""
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"hybrid_deploy.cli.commands.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
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
            if error.errno != errno.ENOSPC:
                raise
            message = "the disk is full; free some space and run the command again"
            raise CommandFailure(message, 1) from error
        except KeyboardInterrupt as error:
            raise CommandFailure("interrupted, nothing was half-written", _INTERRUPTED) from error


@click.group(
    name="hybrid-deploy", cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="hybrid-deploy")
def main() -> None:
    """Put a trained PyTorch encoder-decoder on a device.

    \b
    model --export--> bundle --quantize--> variants --build--> TensorRT engines
    bundle --run--> text, --profile--> latency, --compare--> speed beside accuracy

    Data goes to stdout, progress to stderr. Exit codes: 0 done, 1 failed, 2 wrong request,
    130 interrupted.
    """  # noqa: D301


def start() -> None:
    """Runs `main` as a process: the console script and `python -m hybrid_deploy`.

    CPython ends by the signal, whatever the exit code, if an interrupt ever passed through exec(),
    which PyTorch's tracer calls; so an interrupted process ends here.
    """
    try:
        main()
    except SystemExit as done:
        if done.code == _INTERRUPTED:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_INTERRUPTED)
        raise

"""The command `hybrid-deploy` and the process that runs it."""

from __future__ import annotations

import os
import sys

import click

from hybrid_deploy.cli.exit_codes import INTERRUPTED, CommandGroup
from hybrid_deploy.version import __version__


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

    PyTorch's tracer calls exec(). Once a KeyboardInterrupt has passed through exec(), CPython ends
    the process by the signal and ignores the exit code; `os._exit` keeps the exit code 130.
    """
    try:
        main()
    except SystemExit as exit_request:
        if exit_request.code == INTERRUPTED:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise

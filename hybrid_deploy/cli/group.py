"""The command `hybrid-deploy`."""

from __future__ import annotations

import click

from hybrid_deploy.cli.exit_codes import CommandGroup
from hybrid_deploy.cli.output import show_reports
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
    show_reports()

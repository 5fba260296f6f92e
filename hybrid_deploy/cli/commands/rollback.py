"""`hybrid-deploy rollback`: makes the bundle current again that was current before an update."""

from __future__ import annotations

from pathlib import Path

import click

from hybrid_deploy.cli.options.paths import FOLDER
from hybrid_deploy.cli.options.trust import AT_LEAST, trust_of, trusted_keys


@click.command(epilog="Example: hybrid-deploy rollback /var/lib/digits")
@click.argument("slots", type=FOLDER)
@trusted_keys("--require-signature")
@AT_LEAST
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text")
def rollback(slots: Path, keys: tuple[Path, ...], at_least: int | None, output_format: str) -> None:
    """Make the bundle of SLOTS current again that was current before the last `install`.

    Its files are checked first; if they are damaged, nothing changes and the exit code is 1.
    """
    from hybrid_deploy.bundle.releases import roll_back
    from hybrid_deploy.cli.commands.install import print_current

    trust = trust_of(keys, at_least, "--require-signature")
    print_current(roll_back(slots, trust), slots, output_format)

"""`hybrid-deploy keygen`: a file name -> a key pair that signs bundles."""

from __future__ import annotations

from pathlib import Path

import click

from hybrid_deploy.cli.options.paths import PATH
from hybrid_deploy.cli.output import log, say
from hybrid_deploy.errors import UsageError


@click.command(epilog="Example: hybrid-deploy keygen release.key")
@click.argument("file", type=PATH)
def keygen(file: Path) -> None:
    """Make a key pair: FILE signs bundles, FILE.pub checks the signatures on devices.

    Only the owner can read FILE, which is not encrypted: keep it off the devices. No existing file
    is replaced.
    """
    from hybrid_deploy.bundle.paths import check_outside_bundles
    from hybrid_deploy.bundle.signing import make_keys

    if not file.name:
        raise UsageError(f"{file} is a folder; name a file in it")
    check_outside_bundles(file)
    private, public = make_keys(file)
    log(f"{private} signs: keep it secret; put {public} on the devices")
    say(str(public))

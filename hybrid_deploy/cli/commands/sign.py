"""`hybrid-deploy sign`: a bundle and a key -> a signature in the bundle."""

from __future__ import annotations

from pathlib import Path

import click

from hybrid_deploy.cli.options.common import BUNDLE
from hybrid_deploy.cli.options.paths import PATH
from hybrid_deploy.cli.output import say


@click.command(epilog="Example: hybrid-deploy sign digits.bundle --key release.key --version 4")
@BUNDLE
@click.option("--key", type=PATH, required=True, help="Private key of `keygen`.")
@click.option(
    "--version", type=click.IntRange(min=0), default=0, show_default=True,
    help="Version of the bundle, which a device can ask for with --at-least.",
)  # fmt: skip
def sign(bundle: Path, key: Path, version: int) -> None:
    """Sign BUNDLE, after checking every file, so that a device can tell who made it.

    Signed are all files and the version. Sign last: another variant needs a new signature. Several
    keys can sign one bundle, so that devices can change from an old key to a new one.
    """
    from hybrid_deploy.bundle.signing import sign as sign_bundle

    made = sign_bundle(bundle, key, version)
    say(f"{bundle} is signed as version {made.version} by key {made.key[:8]}")

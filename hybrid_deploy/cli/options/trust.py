"""Options that name the signatures a command accepts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hybrid_deploy.cli.options.paths import PATH

if TYPE_CHECKING:
    from hybrid_deploy.bundle.signature import Trust

_Command = TypeVar("_Command", bound=Callable[..., Any])

AT_LEAST = click.option(
    "--at-least", type=click.IntRange(min=0), metavar="VERSION",
    help="Smallest version that is accepted of a signed bundle.",
)  # fmt: skip


def trusted_keys(name: str) -> Callable[[_Command], _Command]:
    """Returns the option of that name for files of public keys; it can be given several times."""
    return click.option(
        name, "keys", type=PATH, multiple=True, metavar="KEY.pub",
        help="Accept only a bundle that this key signed; give it again for another key.",
    )  # fmt: skip


def trust_of(keys: tuple[Path, ...], at_least: int | None, name: str) -> Trust | None:
    """Returns the trust of the two options; None if no signature is asked for.

    Args:
        keys: files of the public keys.
        at_least: smallest accepted version.
        name: the option of the keys, for the message.

    Raises:
        click.UsageError: a version is asked for and no key.
    """
    if not keys:
        if at_least is not None:
            raise click.UsageError(f"--at-least needs the key that is trusted: give {name} KEY.pub")
        return None
    from hybrid_deploy.bundle.signature import Trust

    return Trust(keys, at_least or 0)

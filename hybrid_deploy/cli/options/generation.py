"""The options that say how text is generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from hybrid_deploy.runtime.generation.options import GenerateOptions

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--beams", type=int, help="Search so many sequences at a time; 1 is greedy."),
    click.option(
        "--n-best", type=int, default=1, show_default=True, help="How many of the beams to print."
    ),
    click.option("--length-penalty", type=float, help="Over 0, a beam search prefers long texts."),
    click.option("--temperature", type=float, help="Draw tokens by chance; over 1 is wilder."),
    click.option("--top-k", type=int, help="Draw among so many likeliest tokens."),
    click.option("--top-p", type=float, help="Draw among those that hold this probability."),
    click.option("--min-p", type=float, help="... that are this likely beside the likeliest."),
    click.option("--seed", type=int, help="Draw the same tokens every time."),
    click.option("--max-tokens", type=int, help="End after so many new tokens."),
    click.option("--stop", multiple=True, help="Text that ends it; may be repeated."),
    click.option("--pattern", help="Regular expression that the whole text has to match."),
    click.option("--timeout", "timeout_s", type=float, help="End after so many seconds."),
    click.option("--scores", is_flag=True, help="Give the log-probability of every token (JSON)."),
)
_RENAMED = {"max_tokens": "max_new_tokens", "pattern": "allowed"}


def generation_options(command: Command) -> Command:
    """Returns a command the options; they arrive together, for `options_of`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def options_of(values: dict[str, Any]) -> GenerateOptions:
    """Makes options of what was given on the command line.

    Raises:
        UsageError: a value is out of its range, or two do not go together.
    """
    from hybrid_deploy.runtime.generation.options import GenerateOptions

    return GenerateOptions(**{_RENAMED.get(name, name): value for name, value in values.items()})

"""The options of `run` that control generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from hybrid_deploy.runtime.generation.options import GenerateOptions

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--beams", type=int, help="Search with so many sequences at a time; 1 is greedy."),
    click.option(
        "--n-best", type=int, default=1, show_default=True, help="How many of the beams to print."
    ),
    click.option("--length-penalty", type=float, help="Over 0, a beam search prefers long texts."),
    click.option(
        "--temperature",
        type=float,
        help="Draw tokens at random; over 1 makes unlikely ones likelier.",
    ),
    click.option("--top-k", type=int, help="Draw among so many of the likeliest tokens."),
    click.option(
        "--top-p", type=float, help="Draw among the likeliest tokens that sum to this probability."
    ),
    click.option(
        "--min-p",
        type=float,
        help="Draw among tokens at least so likely, relative to the likeliest.",
    ),
    click.option("--seed", type=int, help="Seed of the random draws: the same tokens every time."),
    click.option("--max-tokens", type=int, help="End after so many new tokens."),
    click.option("--stop", multiple=True, help="Text that ends the result; may be repeated."),
    click.option("--pattern", help="Regular expression that the whole text matches."),
    click.option("--timeout", "timeout_s", type=float, help="End after so many seconds."),
    click.option(
        "--scores", is_flag=True, help="Return the log-probability of every token (JSON)."
    ),
    click.option(
        "--language", metavar="CODE", help="Language that is spoken: de; auto detects it. (Whisper)"
    ),
    click.option("--task", help="transcribe, or translate into English. (Whisper)"),
)
_FIELDS = {"max_tokens": "max_new_tokens", "pattern": "allowed"}
"""Fields of GenerateOptions whose option has another name."""


def generation_options(command: Command) -> Command:
    """Adds the options to a command, which must pass their values on to `options_of`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def options_of(values: dict[str, Any]) -> GenerateOptions:
    """Returns the generation options of a command line.

    Args:
        values: values of the options, by the names of click's parameters.

    Raises:
        UsageError: a value is out of its range, or two options exclude each other.
    """
    from hybrid_deploy.runtime.generation.options import GenerateOptions

    return GenerateOptions(**{_FIELDS.get(name, name): value for name, value in values.items()})

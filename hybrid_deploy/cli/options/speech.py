"""The options of `run` for speech: times, and recordings longer than the model's window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hybrid_deploy.errors import UsageError

if TYPE_CHECKING:
    from hybrid_deploy.runtime.speech.transcribe import LongForm

_Command = TypeVar("_Command", bound=Callable[..., Any])

SUBTITLES = ("srt", "vtt")
"""Output formats that are subtitles."""

_OPTIONS = (
    click.option("--timestamps", is_flag=True, help="Begin and end of each stretch. (Whisper)"),
    click.option("--long", is_flag=True, help="Cut long sound into parts, a line for each."),
    click.option(
        "--cut", type=click.Choice(["quiet", "timestamps"]),
        help="Where --long cuts: where it is quiet, or at Whisper's own timestamps, with another "
        "try where the text seems wrong.  [default: quiet]",
    ),
    click.option(
        "--context", is_flag=True,
        help="Each part reads the text before it, with --cut timestamps.",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class SpeechOptions:
    """Values of the options for speech.

    Attributes:
        timestamps: whether segments with times are asked for.
        long: whether recordings may be longer than the model's window.
        cut: where long recordings are cut; None for the default.
        context: whether each part reads the text before it.
        subtitles: whether the output is subtitles.
    """

    timestamps: bool = False
    long: bool = False
    cut: str | None = None
    context: bool = False
    subtitles: bool = False

    @property
    def used(self) -> bool:
        """Whether the inputs are speech for sure: one of the options is set."""
        return self.timestamps or self.long or self.subtitles

    def long_form(self) -> LongForm | None:
        """Returns how long recordings are decoded; None for short ones."""
        from hybrid_deploy.runtime.speech.transcribe import LongForm

        if not self.long:
            return None
        cut = "timestamps" if self.cut == "timestamps" else "quiet"
        return LongForm(cut, condition_on_previous=self.context)


def speech_options(command: _Command) -> _Command:
    """Adds the options to a command, which must pass their values on to `speech_options_of`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def speech_options_of(values: dict[str, Any], output_format: str) -> SpeechOptions:
    """Takes the options for speech out of the values of a command line.

    Args:
        values: values of all options, by the names of click's parameters; those for speech are
            removed.
        output_format: value of --format.

    Raises:
        UsageError: an option is given without the one that it belongs to.
    """
    names = {field.name for field in fields(SpeechOptions)} & {*values}
    taken = {name: values.pop(name) for name in names}
    options = SpeechOptions(**taken, subtitles=output_format in SUBTITLES)
    if options.cut is not None and not options.long:
        raise UsageError("--cut says where long recordings are cut; give --long with it")
    if options.context and options.cut != "timestamps":
        raise UsageError("--context reads the text of earlier windows; give --cut timestamps too")
    return options

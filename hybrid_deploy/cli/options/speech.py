"""The options of `run` for speech: times, long recordings and live sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hybrid_deploy.errors import UsageError

if TYPE_CHECKING:
    from hybrid_deploy.runtime.speech.transcribe import Cut, LongForm

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
    click.option(
        "--pcm", type=click.Choice(["u8", "s16le", "s24le", "s32le", "f32le"]),
        help="FILES is -: raw samples of one channel on stdin, text as they come.",
    ),
    click.option("--rate", type=int, help="Samples per second on stdin, with --pcm."),
    click.option("--microphone", is_flag=True, help="Hear the microphone, until Ctrl-C."),
    click.option(
        "--step", "step_s", type=click.FloatRange(0.1, 10), default=1.0, show_default=True,
        help="Seconds of sound between two looks at it, with --pcm and --microphone.",
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
        pcm: form of raw samples on stdin; None for none.
        rate: samples per second on stdin; None if it is not given.
        microphone: whether the sound is that of the microphone.
        step_s: seconds of live sound between two decodings.
        subtitles: whether the output is subtitles.
    """

    timestamps: bool = False
    long: bool = False
    cut: Cut | None = None
    context: bool = False
    pcm: str | None = None
    rate: int | None = None
    microphone: bool = False
    step_s: float = 1.0
    subtitles: bool = False

    @property
    def used(self) -> bool:
        """Whether the inputs are speech for sure: one of the options is set."""
        return self.timestamps or self.long or self.subtitles

    @property
    def live(self) -> bool:
        """Whether the sound comes from stdin or a microphone."""
        return self.microphone or self.pcm is not None

    def long_form(self) -> LongForm | None:
        """Returns how long recordings are decoded; None for short ones."""
        from hybrid_deploy.runtime.speech.transcribe import LongForm

        if not self.long:
            return None
        return LongForm(
            "timestamps" if self.cut == "timestamps" else "quiet",
            condition_on_previous=self.context,
        )


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
    if options.rate is not None and options.pcm is None:
        raise UsageError("--rate belongs to raw samples; give --pcm too, or leave it out")
    return options

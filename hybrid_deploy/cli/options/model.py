"""The options of `export` that describe a torch.nn.Module."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hybrid_deploy.cli.options.paths import PATH
from hybrid_deploy.errors import UsageError

if TYPE_CHECKING:
    from hybrid_deploy.bundle.input_specs import ImageInput

_Command = TypeVar("_Command", bound=Callable[..., Any])
_DYNAMIC = re.compile(
    r"(?P<input>\w+):(?P<axis>\d+)=(?P<smallest>\d+)\.\.(?P<largest>\d+)"
    r"(:(?P<multiple>\d+))?"
)
_HEIGHT_AXIS, _WIDTH_AXIS = 2, 3
_CENTRE = 0.5  # mean and deviation 0.5 map pixels to -1..1
_WHITE = 255


def _click_options() -> list[Callable[[Any], Any]]:
    return [
        click.option("--example", type=PATH, help="A typical input: picture, .npy or .npz."),
        click.option("--max-length", type=int, help="Largest number of tokens of a sequence."),
        click.option("--start", type=int, multiple=True, help="Start token; may be repeated."),
        click.option("--end", type=int, multiple=True, help="End token; may be repeated."),
        click.option("--pad", type=int, help="Token that finished sequences read.  [default: 0]"),
        click.option(
            "--dynamic", multiple=True, metavar="INPUT:AXIS=MIN..MAX[:MULTIPLE]",
            help="An axis that varies, may be repeated: image:3=32..512, image:3=32..512:8.",
        ),
        click.option("--mode", type=click.Choice(["L", "RGB"]), help="Default: the picture's."),
        click.option("--height", type=int, help="Pixels.  [default: the picture's]"),
        click.option("--width", type=int, help="Pixels.  [default: in proportion to the height]"),
        click.option("--mean", help="Mean of the pixels in 0..1, per channel: 0.5 or 0.4,0.4,0.4."),
        click.option("--std", help="Standard deviation of pixels, per channel.  [default: 0.5]"),
    ]  # fmt: skip


@dataclass(frozen=True)
class ModelOptions:
    """Values of the options that describe a model; None or empty for options that are not used.

    Attributes:
        example: file with a typical input: a picture, .npy or .npz.
        max_length: largest number of tokens of a sequence.
        start: ids of the start tokens.
        end: ids of the end tokens.
        pad: id of the token that the decoder reads for finished sequences.
        dynamic: axes that vary, each as INPUT:AXIS=MIN..MAX or INPUT:AXIS=MIN..MAX:MULTIPLE.
        mode: Pillow mode that pictures are converted to, `L` or `RGB`.
        height: height in pixels that pictures are resized to.
        width: width in pixels that pictures are resized to.
        mean: mean of each channel, as numbers separated by commas.
        std: standard deviation of each channel, as numbers separated by commas.
    """

    example: Path | None = None
    max_length: int | None = None
    start: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    pad: int | None = None
    dynamic: tuple[str, ...] = ()
    mode: str | None = None
    height: int | None = None
    width: int | None = None
    mean: str | None = None
    std: str | None = None

    def used_options(self) -> list[str]:
        """Returns the names of the options that are used, such as `--max-length`."""
        return [
            f"--{field.name.replace('_', '-')}"
            for field in fields(self)
            if getattr(self, field.name) not in (None, ())
        ]

    def picture_size(self) -> tuple[int, int] | None:
        """Returns the width and height of a typical picture; None if the options tell none.

        Raises:
            UsageError: one of the two is missing, or below 1.
        """
        if self.height is None and self.width is None:
            return None
        if self.height is None or self.width is None or min(self.height, self.width) < 1:
            raise UsageError(
                "the pictures of a folder have a width and a height; give both, as in --width 640 "
                "--height 480"
            )
        return self.width, self.height

    def axes(self) -> dict[str, dict[int, tuple[int, int, int]]]:
        """Returns the smallest size, the largest and the multiple, by input and axis that varies.

        Raises:
            UsageError: a value of --dynamic is not of the form INPUT:AXIS=MIN..MAX[:MULTIPLE].
        """
        axes: dict[str, dict[int, tuple[int, int, int]]] = {}
        for text in self.dynamic:
            match = _DYNAMIC.fullmatch(text)
            if match is None:
                raise UsageError(
                    "--dynamic expects INPUT:AXIS=MIN..MAX or INPUT:AXIS=MIN..MAX:MULTIPLE, such "
                    f"as image:3=32..512 or image:3=32..512:8, got {text}"
                )
            multiple = int(match["multiple"] or 1)
            sizes = int(match["smallest"]), int(match["largest"]), multiple
            axes.setdefault(match["input"], {})[int(match["axis"])] = sizes
        return axes

    def image_input(self, name: str, mode: str, size: tuple[int, int]) -> ImageInput:
        """Returns how pictures become an input of the encoder.

        Args:
            name: name of the encoder's input.
            mode: Pillow mode of the example, `L` or `RGB`; --mode replaces it.
            size: width and height of the example in pixels.

        Raises:
            UsageError: --mean or --std holds no numbers, or not one for each channel.
        """
        from hybrid_deploy.bundle.input_specs import ImageInput

        mode = self.mode or mode
        height = self.height or size[1]
        width = self.width or max(1, round(size[0] * height / size[1]))
        fixed = (width, width, 1)
        smallest, largest, multiple = self.axes().get(name, {}).get(_WIDTH_AXIS, fixed)
        return ImageInput(
            name=name,
            mode="L" if mode == "L" else "RGB",
            height=height,
            width=width if smallest == largest else None,
            width_multiple=multiple,
            min_width=smallest,
            max_width=largest,
            margin=0,
            background=_WHITE,
            mean=_per_channel("--mean", self.mean, mode),
            std=_per_channel("--std", self.std, mode),
        )


def model_options(command: _Command) -> _Command:
    """Adds the options to a command; its parameters have the names of ModelOptions' fields."""
    for option in reversed(_click_options()):
        command = option(command)
    return command


def axis_name(name: str, axis: int, *, is_image: bool) -> str:
    """Returns the name of a varying dimension: `height` or `width` of pictures, else as `audio_1`.

    Args:
        name: name of the encoder's input.
        axis: index of the axis that varies.
        is_image: whether the input is made from pictures.
    """
    names: Mapping[int, str] = {_HEIGHT_AXIS: "height", _WIDTH_AXIS: "width"} if is_image else {}
    return names.get(axis, f"{name}_{axis}")


def _per_channel(option: str, text: str | None, mode: str) -> tuple[float, ...]:
    channels = 1 if mode == "L" else 3
    try:
        values = tuple(float(part) for part in (text or str(_CENTRE)).split(","))
    except ValueError:
        raise UsageError(f"{option} expects numbers separated by commas, got {text!r}") from None
    if len(values) not in (1, channels):
        raise UsageError(f"{option} has {len(values)} numbers, mode {mode} has {channels} channels")
    return values * channels if len(values) == 1 else values

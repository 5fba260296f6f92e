"""The part of a manifest that describes how files become the inputs of the encoder.

ImageInput      pictures of one height and varying width, such as lines of text
PixelsInput     pictures, by the steps of a Hugging Face image processor
TilesInput      pictures cut into tiles, for Idefics3 and SmolVLM
FramesInput     frames of a video, each by the steps of a PixelsInput
PatchesInput    pictures cut into patches, for Pix2Struct
AudioInput      speech, as log-mel features, Kaldi filter banks or the waveform
TextInput       text, by a tokenizer of the bundle
ArrayInput      arrays, unchanged

An encoder with several inputs, such as a picture and a question, has one of these for each.
`hybrid_deploy.runtime.preprocess` applies them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from hybrid_deploy.bundle.field_types import (
    FilePath,
    Length,
    Level,
    Name,
    Number,
    Parts,
    PixelNumber,
    Pixels,
    PositiveNumber,
    Samples,
    Size,
    TokenId,
)
from hybrid_deploy.bundle.pixel_steps import PixelStep, Resample
from hybrid_deploy.bundle.prompt_template import PromptTemplate


class ImageInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="image"):
    """How a picture becomes the encoder's input `(batch, channels, height, width)` float32.

    The picture is converted to `mode`, resized, padded on the right, and mapped to
    `(value / 255 - mean) / std` per channel.

    Attributes:
        name: name of the encoder's input.
        mode: Pillow mode that pictures are converted to: `L` (1 channel) or `RGB` (3).
        height: height in pixels that pictures are resized to.
        width: width in pixels that pictures are resized to; None keeps their proportions.
        width_multiple: number that the padded width is a multiple of.
        min_width: smallest padded width in pixels.
        max_width: largest padded width in pixels; wider pictures are refused.
        margin: number of columns that are added to the right of the widest picture of a batch.
        background: value 0..255 of the pixels that are added.
        mean: mean of each channel, for values in 0..1.
        std: standard deviation of each channel, for values in 0..1.
        mask: name of the encoder's input (batch, width) int64 that is 1 in columns of the picture
            and 0 in added columns; None if the encoder has none.
    """

    name: Name
    mode: Literal["L", "RGB"]
    height: Pixels
    width: Size | None
    width_multiple: Size
    min_width: Length
    max_width: Size
    margin: Length
    background: Level
    mean: tuple[PixelNumber, ...]
    std: tuple[PositiveNumber, ...]
    mask: Name | None = None


class PixelsInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="pixels"):
    """How a picture becomes `(batch, channels, height, width)` float32, as in transformers.

    The fields are the settings of a Hugging Face image processor.

    Attributes:
        name: name of the encoder's input.
        steps: steps that are applied to the 8-bit pixels, in this order.
        mode: Pillow mode that pictures are converted to before the steps: `L` or `RGB`.
        scale: factor that pixel values are multiplied with after the steps; None leaves 0..255.
        mean: mean of each channel, subtracted after the scaling; empty for no normalisation.
        std: standard deviation of each channel, which the difference is divided by.
    """

    name: Name
    steps: tuple[PixelStep, ...]
    mode: Literal["L", "RGB"] = "RGB"
    scale: PixelNumber | None = 1 / 255
    mean: tuple[PixelNumber, ...] = ()
    std: tuple[PositiveNumber, ...] = ()


class TilesInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tiles"):
    """How a picture becomes tiles `(batch, tiles, channels, side, side)` float32.

    The tiles stand in the order of reading. If there are several, the whole picture follows,
    resized to one tile. This is the input of Idefics3 and SmolVLM.

    Attributes:
        picture: how a picture and each tile become arrays; its steps lead to whole tiles.
        side: height and width of a tile in pixels.
        rows: number of rows of tiles; a picture that gives another number is refused.
        columns: number of columns of tiles.
        resample: resampling filter of the whole picture.
    """

    picture: PixelsInput
    side: Pixels
    rows: Parts
    columns: Parts
    resample: Resample = "lanczos"

    @property
    def name(self) -> str:
        """The name of the encoder's input."""
        return self.picture.name


class FramesInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="frames"):
    """How the frames of a video become `(batch, frames, channels, height, width)` float32.

    Attributes:
        name: name of the encoder's input.
        picture: how each frame becomes an array.
        frames: number of frames; a longer video is sampled at even distances, a shorter one is
            padded with zeros.
        channels_first: whether the array is `(batch, channels, frames, height, width)` instead.
        mask: name of the encoder's input (batch, frames) int64 that is 1 for a frame and 0 for
            padding; None if the encoder has none.
    """

    name: Name
    picture: PixelsInput
    frames: Parts
    channels_first: bool = False
    mask: Name | None = None


class PatchesInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="patches"):
    """How a picture becomes patches `(batch, max_patches, 2 + height * width * 3)` float32.

    The picture is resized in proportion to the largest grid of whole patches, and cut. Each patch
    is preceded by its row and column, counted from 1; missing patches are zeros. This is the input
    of Pix2Struct (arXiv:2210.03347).

    Attributes:
        name: name of the encoder's input.
        mask: name of the encoder's input (batch, max_patches) float32 that is 1 for a patch and 0
            for padding; None if the encoder has none.
        max_patches: number of patches that the encoder takes.
        patch_height: height of a patch in pixels.
        patch_width: width of a patch in pixels.
        normalize: whether a picture is first normalised by its own mean and standard deviation.
    """

    name: Name
    mask: Name | None
    max_patches: Parts
    patch_height: Pixels
    patch_width: Pixels
    normalize: bool = True


class LogMel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="log-mel"):
    """Log-mel features of Whisper, `(batch, mels, frames)`.

    Attributes:
        mels: number of mel bands.
        fft: length of the Fourier transform in samples.
        hop: distance of two frames in samples.
        samples: number of samples that every utterance is padded to; longer ones are refused.
    """

    mels: Parts
    fft: Samples
    hop: Samples
    samples: Samples


class FilterBank(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="filter-bank"):
    """Filter banks of Kaldi, `(batch, frames, mels)`: frames of 25 ms, 10 ms apart.

    Attributes:
        mels: number of mel bands.
        center: whether the mean of each band over the utterance is subtracted.
        scale: whether each band is divided by its standard deviation over the utterance.
    """

    mels: Parts
    center: bool = True
    scale: bool = True


class Waveform(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="waveform"):
    """The waveform, `(batch, samples)` with values within -1..1.

    Attributes:
        normalize: whether an utterance is normalised to mean 0 and variance 1.
    """

    normalize: bool = False


class AudioInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="audio"):
    """How speech becomes the encoder's input, float32.

    Attributes:
        name: name of the encoder's input.
        sampling_rate: samples per second that the encoder expects; other rates are refused.
        features: features that are computed from the samples; they define the input's shape.
        mask: name of the encoder's input int64 that is 1 for sound and 0 for padding; None if the
            encoder has none, and then a batch holds utterances of one length.
        padding: value that shorter utterances are padded with on the right.
        max_seconds: longest utterance in seconds, longer ones are refused; None for no limit.
    """

    name: Name
    sampling_rate: Samples
    features: LogMel | FilterBank | Waveform
    mask: Name | None = None
    padding: Number = 0.0
    max_seconds: PositiveNumber | None = None


class TextInput(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="text"
):
    """How text becomes token ids `(batch, length)` int64.

    Attributes:
        name: name of the encoder's input.
        tokenizer: path of the tokenizer file, relative to the bundle; it is in the format of
            Hugging Face tokenizers and adds its own special tokens.
        max_length: largest number of tokens; longer texts are refused.
        mask: name of the encoder's input (batch, length) int64 that is 1 for a token and 0 for
            padding; None if the encoder has none.
        pad_token: id of the token that shorter texts are padded with on the right.
        prefix: ids of tokens that are put before those of the tokenizer.
        suffix: ids of tokens that are put after those of the tokenizer.
        template: text around the words of the user, for which the tokenizer adds no special tokens
            of its own; None takes the text alone, with them.
    """

    name: Name
    tokenizer: FilePath
    max_length: Size
    mask: Name | None = None
    pad_token: TokenId = 0
    prefix: tuple[TokenId, ...] = ()
    suffix: tuple[TokenId, ...] = ()
    template: PromptTemplate | None = None


class ArrayInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="array"):
    """Arrays that become the encoder's inputs unchanged, batch first.

    Attributes:
        name: name of the encoder's first input; if it is the only one, its array is read from a
            `.npy` or `.npz` file.
        others: names of the encoder's further inputs; if there are any, all arrays are read by
            their names from one `.npz` file.
    """

    name: Name
    others: tuple[Name, ...] = ()


EncoderInput = (
    ImageInput
    | PixelsInput
    | TilesInput
    | FramesInput
    | PatchesInput
    | AudioInput
    | TextInput
    | ArrayInput
)
Preprocess = EncoderInput | tuple[EncoderInput, ...]
"""One input, or several, of which one may be read from a file and one may be a text beside it."""

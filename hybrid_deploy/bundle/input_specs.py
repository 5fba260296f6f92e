"""What an encoder takes, and how it is made of files: part of the schema of a manifest.

ImageInput      pictures of any width, as lines of text are
PixelsInput     pictures through the steps of a Hugging Face image processor
FramesInput     frames of a video, each as the pictures above
PatchesInput    pictures cut into patches, as Pix2Struct takes them
AudioInput      speech: log-mel, Kaldi filter bank or the waveform itself
TextInput       text through a tokenizer of the bundle
ArrayInput      arrays as they are

An encoder of several inputs (a picture and a question) has one of these for each.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
"""The filters of Pillow; in the order of Pillow's own numbers, which Hugging Face writes."""


class ImageInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="image"):
    """How a picture becomes the encoder's input `(batch, channels, height, width)` float32.

    The picture is converted to `mode`, resized to `height` (keeping its proportions unless `width`
    is fixed), mapped to `(value / 255 - mean) / std` per channel, and padded on the right with
    `background`: `margin` columns, then up to `min_width` and a multiple of `width_multiple`.
    `mask`, if the encoder takes one, is (batch, width): 1 where there is a picture, 0 where it was
    padded.
    """

    name: str
    mode: Literal["L", "RGB"]
    height: int
    width: int | None
    width_multiple: int
    min_width: int
    max_width: int
    margin: int
    background: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mask: str | None = None


class CropMargin(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="crop-margin"):
    """Cuts off the bright margin of a page: what is not below `threshold` of its grey range."""

    threshold: int = 200


class AlignLongAxis(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="align-long-axis"):
    """Turns a picture clockwise by 90 degrees if it lies while `height` x `width` stands."""

    height: int
    width: int


class Resize(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="resize"):
    """Resizes to exactly `height` x `width`."""

    height: int
    width: int
    resample: Resample = "bilinear"


class ResizeShortestEdge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="shortest"):
    """Resizes in proportion: the shortest edge to `edge`, the longest to at most `longest`."""

    edge: int
    longest: int | None = None
    resample: Resample = "bilinear"


class ResizeWithin(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="within"):
    """Resizes in proportion to the largest size within `height` x `width`."""

    height: int
    width: int
    resample: Resample = "bilinear"


class Thumbnail(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="thumbnail"):
    """Shrinks in proportion into `height` x `width`, and never enlarges.

    `reducing_gap` is Pillow's: the picture is first reduced by a whole factor.
    """

    height: int
    width: int
    resample: Resample = "bicubic"
    reducing_gap: float | None = None


class Pad(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="pad"):
    """Puts the picture into the middle of a black `height` x `width`."""

    height: int
    width: int


class CenterCrop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="center-crop"):
    """Cuts out the middle `height` x `width`; what lies outside the picture is black."""

    height: int
    width: int


PixelStep = (
    CropMargin
    | AlignLongAxis
    | Resize
    | ResizeShortestEdge
    | ResizeWithin
    | Thumbnail
    | Pad
    | CenterCrop
)


class PixelsInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="pixels"):
    """How a Hugging Face image processor makes `(batch, channels, height, width)` float32.

    The picture is converted to `mode`, goes through the `steps` in their order as 8-bit pixels, is
    multiplied with `scale` and, where there is a `mean`, mapped to `(value - mean) / std`.
    """

    name: str
    steps: tuple[PixelStep, ...]
    mode: Literal["L", "RGB"] = "RGB"
    scale: float | None = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


class FramesInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="frames"):
    """How the frames of a video become `(batch, frames, channels, height, width)` float32.

    Each goes through the steps of `picture`. Of a longer video `frames` are taken at even
    distances; a shorter one is filled up with zeros. With `channels_first` the result is
    `(batch, channels, frames, height, width)`. `mask`, if the encoder takes one, is
    (batch, frames): 1 where there is a frame.
    """

    name: str
    picture: PixelsInput
    frames: int
    channels_first: bool = False
    mask: str | None = None


class PatchesInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="patches"):
    """How Pix2Struct cuts a picture into `(batch, max_patches, 2 + patch)` float32.

    The picture is normalised by its own mean and deviation, resized to as many whole patches as
    `max_patches` holds, and cut; each patch is preceded by its row and column, counted from 1.
    Rows of zeros fill up; `mask` (float32) is 1 where there is a patch.
    """

    name: str
    mask: str | None
    max_patches: int
    patch_height: int
    patch_width: int
    normalize: bool = True


class LogMel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="log-mel"):
    """Whisper's features `(batch, mels, frames)`: silence is added up to `samples`."""

    mels: int
    fft: int
    hop: int
    samples: int


class FilterBank(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="filter-bank"):
    """Kaldi's features `(batch, frames, mels)`, 25 ms every 10 ms, normalised per utterance."""

    mels: int
    center: bool = True
    scale: bool = True


class Waveform(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="waveform"):
    """The samples themselves `(batch, samples)`, within -1..1 or normalised per utterance."""

    normalize: bool = False


class AudioInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="audio"):
    """How speech becomes an encoder's input, float32.

    Utterances of unequal length are padded with `padding` on the right; `mask` (int64) is 1 where
    there is sound. Without a mask a batch holds utterances of one length.
    """

    name: str
    sampling_rate: int
    features: LogMel | FilterBank | Waveform
    mask: str | None = None
    padding: float = 0.0
    max_seconds: float | None = None


class TextInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="text"):
    """How text becomes token ids `(batch, length)` int64.

    `tokenizer` is a file of the bundle in the format of Hugging Face tokenizers, which adds its own
    special tokens; `prefix` and `suffix` come around those. Shorter texts are filled up with
    `pad_token` on the right; `mask` (int64) is 1 where there is a token.
    """

    name: str
    tokenizer: str
    max_length: int
    mask: str | None = None
    pad_token: int = 0
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()


class ArrayInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="array"):
    """The encoder takes arrays as they are, batch first.

    One array comes from a `.npy` file; with `others` all come by name from a `.npz` file.
    """

    name: str
    others: tuple[str, ...] = ()


EncoderInput = (
    ImageInput | PixelsInput | FramesInput | PatchesInput | AudioInput | TextInput | ArrayInput
)
Preprocess = EncoderInput | tuple[EncoderInput, ...]
"""One input, or one for each of several: at most one made of a file's content, and a text."""

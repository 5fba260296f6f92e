"""Reads WAV files: whole numbers of 8 to 32 bits and floats, also in the extensible form.

Source: "Multimedia Programming Interface and Data Specifications 1.0" (RIFF), and Microsoft's
description of WAVEFORMATEXTENSIBLE.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.errors import InputError

Floats = NDArray[np.float32]

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_FORMAT = struct.Struct("<HHIIHH")  # form, channels, rate, bytes per second, block, bits
_SUBFORMAT_OFFSET = 24  # of the form that an extensible format chunk names
_FORMAT_BYTES = _SUBFORMAT_OFFSET + 2  # of a format chunk that are read
_HEAD_BYTES = 12  # RIFF, a size, WAVE
_CHUNK = struct.Struct("<4sI")  # name and size
_MOST_CHUNKS = 10_000  # before the sound
_UNKNOWN_SIZE = 0x7FFFF000  # a program that writes to a pipe declares this size or more, or zero
_BLOCK_BYTES = 1 << 20


class _Format(NamedTuple):
    form: int
    channels: int
    rate: int
    bits: int

    @property
    def is_read(self) -> bool:
        """Whether samples of this form are read here."""
        return self.bits in {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}.get(self.form, ())

    @property
    def sample_bytes(self) -> int:
        """Size of one sample of all channels."""
        return self.bits // 8 * self.channels


_RAW = {"u8": (_PCM, 8), "s16le": (_PCM, 16), "s24le": (_PCM, 24), "s32le": (_PCM, 32),
        "f32le": (_FLOAT, 32)}  # fmt: skip

RAW_FORMS = tuple(_RAW)
"""Names of the forms of raw samples, as ffmpeg and arecord name them."""


@dataclass(frozen=True)
class Sound:
    """An opened sound file.

    Attributes:
        rate: samples per second.
        samples: number of samples of each channel that the file declares; None if it declares none.
        blocks: reads the file: parts of its samples in their order, (samples, channels) float32
            within -1..1.
    """

    rate: int
    samples: int | None
    blocks: Iterator[Floats]


def open_wav(file: BinaryIO, path: Path) -> Sound | None:
    """Reads the header of a WAV file; its samples are read from the blocks.

    Returns None if it is no WAV file, or one of a compressed form. A file that a program wrote into
    a pipe declares no size; it is read to its end.

    Args:
        file: the opened file, at its begin; it must stay open while the blocks are read.
        path: its path, for the message.

    Raises:
        InputError: the file is damaged, or ends before the end that it declares.
    """
    head, end = file.read(_HEAD_BYTES), file.seek(0, 2)
    if not end:
        raise InputError(f"{path} is a damaged sound file: it ends too early, it is empty")
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    declared = int.from_bytes(head[4:8], "little")
    is_streamed = declared >= _UNKNOWN_SIZE or declared == 0
    form, begin = None, _HEAD_BYTES
    for _ in range(_MOST_CHUNKS):
        file.seek(begin)
        if len(chunk := file.read(_CHUNK.size)) < _CHUNK.size:
            raise InputError(f"{path} is a damaged sound file: it ends too early, before its sound")
        name, size = _CHUNK.unpack(chunk)
        begin += _CHUNK.size
        if name == b"data":
            if form is None:
                raise InputError(f"{path} is a damaged sound file: its format is not declared")
            left = end - begin
            if size >= _UNKNOWN_SIZE > left or (size == 0 and is_streamed):
                size = left
            if size > left:
                raise _cut(path, left, size)
            if not form.is_read:
                return None
            samples = size // form.sample_bytes
            return Sound(form.rate, samples, _blocks(file, form, samples, path))
        if name == b"fmt ":
            form = _format(file.read(min(size, _FORMAT_BYTES)), path)
        begin += size + size % 2
    raise InputError(
        f"{path} is a damaged sound file: its first {_MOST_CHUNKS:,} parts are no sound"
    )


def raw_blocks(file: BinaryIO, form: str, samples: int) -> Iterator[Floats]:
    """Reads raw samples of one channel, such as a recorder writes into a pipe, to their end.

    A sample that is cut at the end is left out.

    Args:
        file: the opened file; `read` returns fewer bytes than asked for only at the end.
        form: one of RAW_FORMS.
        samples: number of samples of a block.

    Returns:
        Blocks of `samples` samples, the last one shorter, (samples,) float32 within -1..1.
    """
    raw = _Format(_RAW[form][0], 1, 0, _RAW[form][1])
    while data := file.read(samples * raw.sample_bytes):
        whole = len(data) // raw.sample_bytes * raw.sample_bytes
        if whole:
            yield _levels(data[:whole], raw)


def _cut(path: Path, left: int, size: int) -> InputError:
    return InputError(
        f"{path} is a damaged sound file: it ends too early, after {left} of {size} bytes of "
        "sound; copy it again, or leave it out with --skip-bad"
    )


def _blocks(file: BinaryIO, form: _Format, samples: int, path: Path) -> Iterator[Floats]:
    """Reads samples from the place of an opened file on.

    Raises:
        InputError: the file has become shorter.
    """
    at_once = max(1, _BLOCK_BYTES // form.sample_bytes)
    for begin in range(0, samples, at_once):
        size = min(at_once, samples - begin) * form.sample_bytes
        data = file.read(size)
        if len(data) < size:
            raise _cut(path, len(data), size)
        yield _levels(data, form).reshape(-1, form.channels)


def _format(chunk: bytes, path: Path) -> _Format:
    """Returns what a format chunk declares.

    Raises:
        InputError: it is too short, or declares no channel or a rate of zero.
    """
    if len(chunk) >= _FORMAT.size:
        form, channels, rate, _, _, bits = _FORMAT.unpack_from(chunk)
        if form == _EXTENSIBLE and len(chunk) >= _FORMAT_BYTES:
            form = int.from_bytes(chunk[_SUBFORMAT_OFFSET:_FORMAT_BYTES], "little")
        if channels and rate:
            return _Format(form, channels, rate, bits)
    raise InputError(f"{path} is a damaged sound file: its format makes no sense")


def _levels(data: bytes, form: _Format) -> Floats:
    """Returns whole samples within -1..1, one channel behind the other."""
    width = form.bits // 8
    if form.form == _FLOAT:
        return np.frombuffer(data, f"<f{width}").astype(np.float32)
    integers = _integers(np.frombuffer(data, np.uint8), width)
    return (integers / float(1 << (8 * width - 1))).astype(np.float32)


def _integers(data: NDArray[np.uint8], width: int) -> NDArray[np.int32]:
    """Returns samples that have `width` little-endian bytes each; single bytes are unsigned."""
    if width == 1:
        return data.astype(np.int32) - 128
    if width == 3:
        # Three bytes become the upper bytes of an int32, so that the shift extends the sign.
        upper_bytes = np.zeros((len(data) // 3, 4), np.uint8)
        upper_bytes[:, 1:] = data.reshape(-1, 3)
        samples: NDArray[np.int32] = upper_bytes.view("<i4")[:, 0] >> 8
        return samples
    return data.view(f"<i{width}").astype(np.int32)

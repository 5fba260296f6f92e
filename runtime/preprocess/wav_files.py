"""Reads WAV files: whole numbers of 8 to 32 bits and floats, also in the extensible form.

Source: "Multimedia Programming Interface and Data Specifications 1.0" (RIFF), and Microsoft's
description of WAVEFORMATEXTENSIBLE.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.errors import InputError

Floats = NDArray[np.float32]

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_FORMAT = struct.Struct("<HHIIHH")  # form, channels, rate, bytes per second, block, bits
_SUBFORMAT_OFFSET = 24  # of the form that an extensible format chunk names
_CHUNK = struct.Struct("<4sI")  # name and size
_UNKNOWN_SIZE = 0x7FFFF000  # a program that writes to a pipe declares this size or more, or zero


class _Format(NamedTuple):
    form: int
    channels: int
    rate: int
    bits: int


def read_wav(path: Path) -> tuple[Floats, int] | None:
    """Returns the samples of a WAV file, (samples, channels) within -1..1, and the rate in Hz.

    Returns None if it is no WAV file, or one of a compressed form. A file that a program wrote into
    a pipe declares no size; it is read to its end.

    Raises:
        InputError: the file is damaged, or ends before the end that it declares.
    """
    content = memoryview(path.read_bytes())
    if not content:
        raise InputError(f"{path} is a damaged sound file: it ends too early, it is empty")
    if bytes(content[:4]) != b"RIFF" or bytes(content[8:12]) != b"WAVE":
        return None
    declared = int.from_bytes(content[4:8], "little")
    is_streamed = declared >= _UNKNOWN_SIZE or declared == 0
    form, begin = None, 12
    while begin + _CHUNK.size <= len(content):
        name, size = _CHUNK.unpack_from(content, begin)
        begin += _CHUNK.size
        if name == b"data":
            if form is None:
                raise InputError(f"{path} is a damaged sound file: its format is not declared")
            left = len(content) - begin
            if size >= _UNKNOWN_SIZE > left or (size == 0 and is_streamed):
                size = left
            if size > left:
                raise InputError(
                    f"{path} is a damaged sound file: it ends too early, after {left} of {size} "
                    "bytes of sound; copy it again, or leave it out with --skip-bad"
                )
            samples = _samples(content[begin : begin + size], form)
            return None if samples is None else (samples, form.rate)
        if name == b"fmt ":
            form = _format(content[begin : begin + size], path)
        begin += size + size % 2
    raise InputError(f"{path} is a damaged sound file: it ends too early, before its sound")


def _format(chunk: memoryview, path: Path) -> _Format:
    """Returns what a format chunk declares.

    Raises:
        InputError: it is too short, or declares no channel or a rate of zero.
    """
    if len(chunk) >= _FORMAT.size:
        form, channels, rate, _, _, bits = _FORMAT.unpack_from(chunk)
        if form == _EXTENSIBLE and len(chunk) >= _SUBFORMAT_OFFSET + 2:
            form = int.from_bytes(chunk[_SUBFORMAT_OFFSET : _SUBFORMAT_OFFSET + 2], "little")
        if channels and rate:
            return _Format(form, channels, rate, bits)
    raise InputError(f"{path} is a damaged sound file: its format makes no sense")


def _samples(data: memoryview, form: _Format) -> Floats | None:
    """Returns samples, (samples, channels); None for a form that is not read here."""
    width = form.bits // 8
    complete = len(data) // (width * form.channels) * width * form.channels if width else 0
    if form.form == _FLOAT and form.bits in (32, 64):
        floats = np.frombuffer(data[:complete], f"<f{width}")
        return floats.astype(np.float32).reshape(-1, form.channels)
    if form.form != _PCM or form.bits not in (8, 16, 24, 32):
        return None
    levels = _integers(np.frombuffer(data[:complete], np.uint8), width)
    scaled = (levels / float(1 << (8 * width - 1))).astype(np.float32)
    return scaled.reshape(-1, form.channels)


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

"""A row of the page: what one contender made of every recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class DecodedFile:
    """One recording, decoded.

    Attributes:
        file: name of the sound file.
        seconds: its length.
        tokens: ids of the new tokens, without the end token.
        text: their text.
        encoder_ms: milliseconds of the encoder.
        decode_ms: milliseconds from the encoder's end to the last token.
    """

    file: str
    seconds: float
    tokens: tuple[int, ...]
    text: str
    encoder_ms: float
    decode_ms: float


@dataclass(frozen=True)
class Row:
    """The measurements of one contender on one model.

    Attributes:
        files: every held-out recording, in their order.
        versions: version of each package of the contender.
        peak_mb: peak RAM of its process in MB; None where the system does not report it.
        size_mb: MB of the files that it loads.
        decoder_bits: mean number of stored bits per weight of the decoder; None for rivals.
        remark: what has to be known of it; empty if nothing.
        seconds: duration of the whole process.
    """

    files: Sequence[DecodedFile]
    versions: Mapping[str, str]
    peak_mb: float | None
    size_mb: float
    decoder_bits: float | None
    remark: str
    seconds: float

"""Types of the fields in a manifest, with the range that each value must lie in.

msgspec checks the ranges when it decodes a manifest. The largest values are far above those of real
models, and small enough that no wrong value makes a process allocate all RAM.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
"""A number of bytes, parameters or operations."""

ElementType: TypeAlias = Literal[
    "float",
    "float16",
    "bfloat16",
    "double",
    "bool",
    "int4",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint4",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float8e4m3fn",
    "float8e5m2",
]
"""Element type of a tensor in small letters, as ONNX names it."""

Length: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
"""A number of tokens or columns that may be 0."""

Size: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
"""Size of a dimension, or a number that others are a multiple of."""

Pixels: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
"""Height or width of a picture, tile or patch in pixels."""

Parts: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
"""Number of tiles, frames, patches or mel bands."""

Samples: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=100_000_000)]
"""Number of samples of sound, or its number of samples per second."""

LARGEST_INPUT_PIXELS = 1 << 25
"""Largest number of pixels of one input of an encoder, over all its frames, tiles or patches."""

Level: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=255)]
"""An 8-bit value of a pixel."""

TokenId: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
"""Id of a token."""

MAX_BEAMS = 256
"""Largest number of beams; each one has caches of its own."""

Beams: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MAX_BEAMS)]
"""Number of sequences of a beam search."""

Number: TypeAlias = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
"""A finite number that float32 holds."""

MIN_POSITIVE, MAX_POSITIVE = 1e-9, 1e9
"""Range of a number over 0 that others are multiplied or divided by, or of a time in seconds."""

PositiveNumber: TypeAlias = Annotated[float, msgspec.Meta(ge=MIN_POSITIVE, le=MAX_POSITIVE)]
"""A number over 0, such as a penalty; the options of a generation have the same range."""

PixelNumber: TypeAlias = Annotated[float, msgspec.Meta(ge=-MAX_POSITIVE, le=MAX_POSITIVE)]
"""A number that pixels are multiplied with, or that is subtracted from them."""

MAX_LENGTH_PENALTY = 30.0
"""Largest exponent of a length, of either sign."""

LengthPenalty: TypeAlias = Annotated[
    float, msgspec.Meta(ge=-MAX_LENGTH_PENALTY, le=MAX_LENGTH_PENALTY)
]
"""An exponent of a length; the options of a generation have the same range."""

PromptText: TypeAlias = Annotated[str, msgspec.Meta(max_length=20_000)]
"""Text around a prompt; a tokenizer may take the square of its length in time."""

TokenText: TypeAlias = Annotated[str, msgspec.Meta(max_length=100_000)]
"""Text of a token; a text has thousands of tokens."""

Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
"""Name of a tensor, a dimension or a model."""

FilePath: TypeAlias = Annotated[str, msgspec.Meta(max_length=1024)]
"""Path of a file in the bundle."""

Sha256: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
"""A SHA-256 in small hexadecimal digits."""

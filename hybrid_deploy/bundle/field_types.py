"""Types of the fields in a manifest, with the range that each value must lie in.

msgspec checks the ranges when it decodes a manifest. The largest values are far above those of real
models, and small enough that no wrong value makes a process allocate all RAM.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
"""A number of bytes, parameters or operations."""

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

Beams: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=256)]
"""Number of sequences of a beam search."""

Number: TypeAlias = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
"""A finite number that float32 holds."""

PositiveNumber: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1e30)]
"""A finite number over 0."""

Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
"""Name of a tensor, a dimension or a model."""

FilePath: TypeAlias = Annotated[str, msgspec.Meta(max_length=1024)]
"""Path of a file in the bundle."""

Sha256: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
"""A SHA-256 in small hexadecimal digits."""

"""The schema of a bundle's `manifest.json`."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from hybrid_deploy.errors import BundleError

SCHEMA_VERSION = 1


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output of a graph; a string in `shape` is a symbolic dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class GraphSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ONNX graph; `file` is relative to the bundle."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Precision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the numbers of a variant are, per component."""

    encoder: str
    decoder: str


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One form of the model: three graphs over shared weight files."""

    precision: Precision
    opset: int
    encoder: GraphSpec
    prefill: GraphSpec
    step: GraphSpec
    provenance: str = ""


class ImageInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="image"):
    """How a picture becomes the encoder's input `(batch, channels, height, width)` float32.

    The picture is converted to `mode`, resized to `height` (keeping its proportions unless `width`
    is fixed), mapped to `(value / 255 - mean) / std` per channel, and padded on the right with
    `background`: `margin` columns, then up to `min_width` and a multiple of `width_multiple`.
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


class ArrayInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="array"):
    """The encoder takes arrays as they are, from `.npy` files."""

    name: str


class Vocabulary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the token ids mean: `tokens[id]`; ids in `special` are not part of the text."""

    tokens: tuple[str, ...]
    special: tuple[int, ...]


class GenerationDefaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How decoding starts and stops; lengths count tokens and include the start tokens."""

    start_tokens: tuple[int, ...]
    end_token: int | None
    pad_token: int
    max_length: int


class DimRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Smallest, typical and largest value of a symbolic dimension."""

    min: int
    typical: int
    max: int


class GoldenSample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input with what the original model makes of it."""

    file: str
    tokens: tuple[int, ...]
    text: str


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of the bundle must be."""

    sha256: str
    size_bytes: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a device has to know about a bundle."""

    schema_version: int
    name: str
    producer: str
    parameters: int
    capacity: int
    dims: dict[str, DimRange]
    preprocess: ImageInput | ArrayInput
    vocabulary: Vocabulary | None
    generation: GenerationDefaults
    variants: dict[str, Variant]
    golden: tuple[GoldenSample, ...]
    files: dict[str, FileRecord]


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seal: str
    manifest: msgspec.Raw


def encode_manifest(manifest: Manifest) -> bytes:
    """Gives the bytes of `manifest.json`: readable JSON, sealed with its own SHA-256."""
    body = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    seal = hashlib.sha256(body).hexdigest()
    return b'{"seal": "' + seal.encode() + b'", "manifest": ' + body + b"}\n"


def decode_manifest(data: bytes, origin: str) -> Manifest:
    """Reads the bytes of a `manifest.json`; `origin` names it in messages.

    Raises:
        BundleError: not JSON, changed since it was written, or of another schema version.
    """
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
        version = msgspec.json.decode(sealed.manifest, type=_Version).schema_version
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"{origin} is not a bundle manifest: {error}") from error
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{origin} has schema version {version}, this hybrid-deploy reads {SCHEMA_VERSION}; "
            "export the model again or install the matching version"
        )
    if hashlib.sha256(bytes(sealed.manifest)).hexdigest() != sealed.seal:
        raise BundleError(f"{origin} was changed after it was written; copy or export it again")
    try:
        return msgspec.json.decode(sealed.manifest, type=Manifest)
    except msgspec.MsgspecError as error:
        raise BundleError(f"{origin} does not follow the schema: {error}") from error


class _Version(msgspec.Struct):
    schema_version: int

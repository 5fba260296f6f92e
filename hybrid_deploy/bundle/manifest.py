"""The schema of a bundle's `manifest.json`."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from hybrid_deploy.bundle.input_specs import ArrayInput as ArrayInput
from hybrid_deploy.bundle.input_specs import ImageInput as ImageInput
from hybrid_deploy.bundle.input_specs import Preprocess
from hybrid_deploy.contract import Head
from hybrid_deploy.errors import BundleError

SCHEMA_VERSION = 2


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output of a graph; a string in `shape` is a symbolic dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class GraphCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one call of a graph costs where every dimension is typical; see `graph_cost`.

    `flops` are those of products (two per multiply-add). `weight_bytes` are the weights read, of
    an embedding table the rows that are looked up. `cache_bytes` and `input_bytes` are the
    caches, and the other inputs, in full.
    """

    flops: int
    weight_bytes: int
    cache_bytes: int
    input_bytes: int

    @property
    def read_bytes(self) -> int:
        """Everything that one call reads."""
        return self.weight_bytes + self.cache_bytes + self.input_bytes


class GraphSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ONNX graph; `file` is relative to the bundle."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cost: GraphCost | None = None


class Precision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the numbers of a variant are, per component."""

    encoder: str
    decoder: str


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One form of the model: its graphs over shared weight files.

    Without `prefill`, prompts are fed to `step` token by token. With `refine`, the logits of
    prefill and step are rough, and it gives the true ones of some tokens. Without `beam_step`,
    memory is copied for every beam.
    """

    precision: Precision
    opset: int
    encoder: GraphSpec
    step: GraphSpec
    prefill: GraphSpec | None = None
    refine: GraphSpec | None = None
    beam_step: GraphSpec | None = None
    provenance: str = ""
    head: Head = Head.LOGITS


class Vocabulary(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tokens"):
    """What the token ids mean: `tokens[id]`; ids in `special` are not part of the text."""

    tokens: tuple[str, ...]
    special: tuple[int, ...]


class Tokenizer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tokenizer"):
    """What the token ids mean, as a file of the bundle in the format of Hugging Face tokenizers.

    Ids in `skip` are not part of the text; `tidy` takes out the spaces before punctuation.
    """

    file: str
    skip: tuple[int, ...] = ()
    tidy: bool = False


class GenerationDefaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How decoding starts, stops and chooses; the neutral defaults leave the logits as they are.

    Lengths count tokens and include the start tokens, and so do positions. The fields are those of
    `generate()` in Hugging Face transformers.

    Attributes:
        start_tokens: what a sequence begins with.
        end_tokens: each of them ends a sequence.
        pad_token: what a finished sequence is fed while others go on.
        max_length: largest length.
        min_length: no end token comes before this length.
        suppressed: tokens that never come.
        begin_suppressed: tokens that do not come first.
        forced: pairs of a position and the token that comes there.
        forced_end: what comes last when `max_length` is reached.
        repetition_penalty: over 1, tokens that were there become less likely.
        no_repeat_ngram: no such number of tokens comes twice in the same order; 0 allows all.
        beams: how many sequences a beam search keeps; 1 is greedy.
        length_penalty: exponent of the length in a beam's score.
        early_stopping: when a beam search ends.
    """

    start_tokens: tuple[int, ...]
    end_tokens: tuple[int, ...]
    pad_token: int
    max_length: int
    min_length: int = 0
    suppressed: tuple[int, ...] = ()
    begin_suppressed: tuple[int, ...] = ()
    forced: tuple[tuple[int, int], ...] = ()
    forced_end: int | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False


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
    preprocess: Preprocess
    vocabulary: Vocabulary | Tokenizer | None
    generation: GenerationDefaults
    variants: dict[str, Variant]
    golden: tuple[GoldenSample, ...]
    files: dict[str, FileRecord]


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seal: str
    manifest: msgspec.Raw


def encode_manifest(manifest: Manifest) -> bytes:
    """Returns the bytes of `manifest.json`: readable JSON, sealed with its own SHA-256."""
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

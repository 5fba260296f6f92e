"""The schema of a bundle's `manifest.json`.

`encode_manifest` writes a Manifest as JSON, `decode_manifest` reads it back and checks it. The
names of the fields are keys of the JSON, so a change of one needs a new SCHEMA_VERSION.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from hybrid_deploy.bundle.field_types import (
    Beams,
    Count,
    ElementType,
    FilePath,
    Length,
    LengthPenalty,
    Name,
    PositiveNumber,
    Sha256,
    Size,
    TokenId,
    TokenText,
)
from hybrid_deploy.bundle.input_specs import Preprocess
from hybrid_deploy.bundle.prompt_template import PromptTemplate
from hybrid_deploy.bundle.speech.speech_tokens import SpeechTokens
from hybrid_deploy.contract import Head
from hybrid_deploy.errors import BundleError

SCHEMA_VERSION = 2

SEAL_BEGIN = b'{"seal": "'
"""First bytes of every `manifest.json`."""

MAX_MANIFEST_BYTES = 16 << 20
"""Largest size of a manifest; a vocabulary of 250,000 tokens takes 5 MB."""

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no JSON of the schema, or nested too deep."""


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input or output of a graph.

    Attributes:
        name: name of the tensor in the graph.
        dtype: element type.
        shape: size of each dimension; a string is the name of a symbolic dimension.
    """

    name: Name
    dtype: ElementType
    shape: tuple[Length | Name, ...]


class GraphCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Work and traffic of one call of a graph, with every dimension at its typical size.

    `hybrid_deploy.onnx_graphs.cost` counts them.

    Attributes:
        flops: floating-point operations of the matrix products, two per multiply-add.
        weight_bytes: bytes of the weights that are read; of an embedding table, only the rows that
            are looked up.
        cache_bytes: bytes of all caches, in full.
        input_bytes: bytes of all other inputs, in full.
    """

    flops: Count
    weight_bytes: Count
    cache_bytes: Count
    input_bytes: Count

    @property
    def read_bytes(self) -> int:
        """Bytes that one call reads: weights, caches and other inputs."""
        return self.weight_bytes + self.cache_bytes + self.input_bytes


class GraphSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An ONNX graph of a variant.

    Attributes:
        file: path of the ONNX file, relative to the bundle.
        inputs: inputs of the graph, in the order of the graph.
        outputs: outputs of the graph, in the order of the graph.
        cost: cost of one call; None if a shape that it depends on is unknown.
    """

    file: FilePath
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cost: GraphCost | None = None


class Precision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Precision of a variant, by component.

    Attributes:
        encoder: precision of the encoder, such as `fp32` or `int8`.
        decoder: precision of the decoder's graphs, such as `fp16` or `int8-weights`.
    """

    encoder: Name
    decoder: Name


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model in one precision.

    Attributes:
        precision: precision of the encoder and of the decoder.
        opset: ONNX opset of the graphs.
        encoder: graph that computes memory, once per input.
        step: graph that reads one token of each sequence.
        prefill: graph that reads a whole prompt; None if the step reads prompts token by token.
        refine: graph that computes the exact logits of some tokens; None if the logits of `step`
            and `prefill` are exact already.
        beam_step: step whose beams share the memory of their input; None if memory is copied for
            every beam.
        provenance: how the variant was made, as text for people.
        head: output of the decoder graphs besides the caches.
    """

    precision: Precision
    opset: Size
    encoder: GraphSpec
    step: GraphSpec
    prefill: GraphSpec | None = None
    refine: GraphSpec | None = None
    beam_step: GraphSpec | None = None
    provenance: str = ""
    head: Head = Head.LOGITS


class Vocabulary(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tokens"):
    """The text of each token id, for models without a tokenizer file.

    Attributes:
        tokens: text of every token, by its id.
        special: ids of tokens that are left out of the decoded text.
    """

    tokens: tuple[TokenText, ...]
    special: tuple[TokenId, ...]


class Tokenizer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tokenizer"):
    """A tokenizer file in the format of Hugging Face tokenizers, which turns token ids into text.

    Attributes:
        file: path of the tokenizer file, relative to the bundle.
        skip: ids of tokens that are left out of the decoded text.
        tidy: whether spaces before punctuation are removed from the decoded text.
    """

    file: FilePath
    skip: tuple[TokenId, ...] = ()
    tidy: bool = False


class GenerationDefaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Generation settings of a bundle; fields with a default leave greedy decoding unchanged.

    Lengths and positions count tokens and include the start tokens. Every field means the same as
    in `generate()` of Hugging Face transformers.

    Attributes:
        start_tokens: ids of the tokens that every sequence begins with.
        end_tokens: ids of the tokens that end a sequence.
        pad_token: id of the token that the decoder reads for a finished sequence of a batch.
        max_length: largest length of a sequence.
        min_length: smallest length of a sequence before an end token may come.
        suppressed: ids of the tokens that are never chosen.
        begin_suppressed: ids of the tokens that are not chosen first after the start tokens.
        forced: pairs (position, token id): this token is chosen at this position.
        forced_end: id of the token that is chosen last when `max_length` is reached; None forces
            none.
        repetition_penalty: factor that makes tokens of the sequence less likely to be chosen again
            if it is over 1; 1 changes nothing.
        no_repeat_ngram: number n: no n tokens come twice in the same order; 0 allows them.
        beams: number of sequences that beam search extends side by side; 1 decodes greedily.
        length_penalty: exponent of the length by which the score of a beam is divided.
        early_stopping: end of a beam search. True ends it with `beams` finished sequences, False
            when a better one is unlikely, "never" when none is possible.
    """

    start_tokens: tuple[TokenId, ...]
    end_tokens: tuple[TokenId, ...]
    pad_token: TokenId
    max_length: Size
    min_length: Length = 0
    suppressed: tuple[TokenId, ...] = ()
    begin_suppressed: tuple[TokenId, ...] = ()
    forced: tuple[tuple[Length, TokenId], ...] = ()
    forced_end: TokenId | None = None
    repetition_penalty: PositiveNumber = 1.0
    no_repeat_ngram: Length = 0
    beams: Beams = 1
    length_penalty: LengthPenalty = 1.0
    early_stopping: bool | Literal["never"] = False


class DimRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Range of a symbolic dimension.

    Attributes:
        min: smallest size.
        typical: size for which costs are counted and engines are optimized.
        max: largest size.
        multiple: number that every size is a multiple of, the smallest and largest ones too.
    """

    min: Size
    typical: Size
    max: Size
    multiple: Size = 1

    @property
    def sizes(self) -> range:
        """Every size, in ascending order."""
        return range(self.min, self.max + 1, self.multiple)


class GoldenSample(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An input of the bundle with the output of the original PyTorch model.

    Fields with their default are not written, so that the manifests of older bundles stay equal.

    Attributes:
        file: path of the input, relative to the bundle.
        tokens: ids of the tokens that the original model generates for the input.
        text: text of these tokens.
        prompt: ids of the tokens that the model continues, for a bundle without start tokens.
        max_new_tokens: largest number of tokens that the model generated; None for no limit
            besides the bundle's.
        is_example: whether the input is the example of the export, which may be noise or zeros.
            Such a sample checks the graphs, and is no data to calibrate with.
    """

    file: FilePath
    tokens: tuple[TokenId, ...]
    text: str
    prompt: tuple[TokenId, ...] = ()
    max_new_tokens: Size | None = None
    is_example: bool = False


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Expected content of a file of the bundle.

    Attributes:
        sha256: SHA-256 of the content, in hexadecimal digits.
        size_bytes: size of the file.
    """

    sha256: Sha256
    size_bytes: Count


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Content of a bundle's `manifest.json`.

    Fields with their default are not written, so that the manifests of older bundles stay equal.

    Attributes:
        schema_version: version of this schema, SCHEMA_VERSION when it is written.
        name: name of the model.
        producer: program and version that exported the model.
        parameters: number of parameters of the original model.
        capacity: number of tokens that the caches have room for.
        dims: range of each symbolic dimension, by its name.
        preprocess: how files become the inputs of the encoder.
        vocabulary: how token ids become text; None if the results are token ids only.
        generation: settings of generation that options of a call replace.
        variants: variants of the bundle, by name.
        golden: golden samples that `hybrid-deploy verify` decodes.
        files: expected content of every other file of the bundle, by its path with slashes.
        prompt: text around the words that the decoder continues; None for a model that is not
            asked in words.
        speech: tokens for language, task and timestamps; None for a model without them.
    """

    schema_version: int
    name: Name
    producer: str
    parameters: Count
    capacity: Size
    dims: dict[str, DimRange]
    preprocess: Preprocess
    vocabulary: Vocabulary | Tokenizer | None
    generation: GenerationDefaults
    variants: dict[str, Variant]
    golden: tuple[GoldenSample, ...]
    files: dict[FilePath, FileRecord]
    prompt: PromptTemplate | None = None
    speech: SpeechTokens | None = None

    @property
    def real_golden(self) -> tuple[GoldenSample, ...]:
        """Golden samples that are real inputs, without the example of the export."""
        return tuple(sample for sample in self.golden if not sample.is_example)


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bytes of a manifest beside their SHA-256."""

    seal: str
    manifest: msgspec.Raw


def encode_manifest(manifest: Manifest) -> bytes:
    """Returns the bytes of `manifest.json`: indented JSON, sealed with its SHA-256."""
    body = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    seal = hashlib.sha256(body).hexdigest()
    return SEAL_BEGIN + seal.encode() + b'", "manifest": ' + body + b"}\n"


def read_manifest(path: Path) -> bytes:
    """Returns the bytes of a `manifest.json`, without reading one that is too large.

    Raises:
        BundleError: the file is larger than MAX_MANIFEST_BYTES.
    """
    with path.open("rb") as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    _check_size(len(data), str(path))
    return data


def _check_size(size_bytes: int, origin: str) -> None:
    if size_bytes > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{origin} is larger than {MAX_MANIFEST_BYTES >> 20} MB, the most that is read of a "
            "manifest; export the model again"
        )


def decode_manifest(data: bytes, origin: str) -> Manifest:
    """Returns the manifest in the bytes of a `manifest.json`.

    Args:
        data: content of the file.
        origin: name of the file in messages.

    Raises:
        BundleError: the bytes are too many, are not JSON, do not match their seal, or do not
            follow the schema; or the schema version is another one.
    """
    _check_size(len(data), origin)
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
        version = msgspec.json.decode(sealed.manifest, type=_Version).schema_version
    except _UNREADABLE as error:
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
    except _UNREADABLE as error:
        raise BundleError(
            f"{origin} does not follow the schema: {error}; export the model again"
        ) from error


class _Version(msgspec.Struct):
    schema_version: int

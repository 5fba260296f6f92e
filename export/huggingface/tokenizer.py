"""Converts a Hugging Face tokenizer to `tokenizer.json`, which needs no transformers to read."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from hybrid_deploy.errors import ExportError
from hybrid_deploy.export.huggingface.folder import ModelFolder
from hybrid_deploy.export.trace.refusal import first_line

_FILES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model", "source.spm",
)  # fmt: skip
_SPACE = "▁"
_TIMESTAMP = re.compile(r"<\|\d+\.\d+\|>")
_NO_LIMIT = 1 << 16  # transformers writes a huge number for no largest length
_ALL_SPACES = 1 << 16  # more than any text begins or ends with
_UNKNOWN_PENALTY = 10.0  # SentencePiece's kUnkPenalty
_UNIGRAM = _NORMAL_PIECE = 1  # in TrainerSpec.ModelType and in SentencePiece.Type


@dataclass(frozen=True)
class ImportedTokenizer:
    """A tokenizer in the form that the runtime reads.

    Attributes:
        decoder: content of the `tokenizer.json` that turns token ids into text.
        encoder: content of the `tokenizer.json` that turns the encoder's text into token ids; None
            if `decoder` does both.
        skip: token ids that are not part of the text.
        tidy: whether decoding removes spaces before punctuation.
        suffix: token ids to add after the encoder's text, since `encoder` does not add them.
        max_length: largest number of tokens of a text; None if the folder sets none.
    """

    decoder: bytes
    encoder: bytes | None
    skip: tuple[int, ...]
    tidy: bool
    suffix: tuple[int, ...] = ()
    max_length: int | None = None


def import_tokenizer(folder: ModelFolder) -> ImportedTokenizer | None:
    """Returns the tokenizer of a folder; None if it has none.

    Raises:
        ExportError: the tokenizer cannot be loaded or converted.
    """
    if not any((folder.path / name).is_file() for name in _FILES):
        return None
    loaded = _load(folder)
    name = type(loaded).__name__
    backend = getattr(loaded, "backend_tokenizer", None)
    if isinstance(backend, tokenizers.Tokenizer):
        return ImportedTokenizer(
            decoder=tokenizer_content(backend),
            encoder=None,
            skip=_special_ids(backend),
            tidy=_tidies(loaded, backend),
            max_length=_max_length(loaded),
        )
    if name == "MarianTokenizer":
        return _marian(folder, loaded)
    if name == "Speech2TextTokenizer":
        if loaded.do_upper_case:
            folder.warn("the tokenizer asks for capitals (do_upper_case); the text stays as it is")
        return ImportedTokenizer(
            decoder=_pieces_only(loaded.encoder, loaded.unk_token),
            encoder=None,
            skip=tuple(sorted(loaded.all_special_ids)),
            tidy=False,
            max_length=_max_length(loaded),
        )
    raise ExportError(
        f"{folder.path} has a {name}, which is neither a fast tokenizer nor one of Marian or "
        "Speech2Text; save a tokenizer.json with it"
    )


def _load(folder: ModelFolder) -> Any:
    """Returns the tokenizer of a folder as transformers loads it without a network."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return AutoTokenizer.from_pretrained(
                folder.path, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # transformers passes on the errors of its libraries
        reason = first_line(error)
        raise ExportError(f"the tokenizer in {folder.path} cannot be loaded: {reason}") from error


def tokenizer_content(backend: tokenizers.Tokenizer) -> bytes:
    """Returns the `tokenizer.json` of a tokenizer that neither pads nor truncates."""
    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy.to_str().encode()


def _special_ids(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """Returns the ids of special tokens and of Whisper's timestamps, which decode() leaves out."""
    added = backend.get_added_tokens_decoder()
    return tuple(
        sorted(
            index
            for index, token in added.items()
            if token.special or _TIMESTAMP.fullmatch(token.content)
        )
    )


def _tidies(loaded: Any, backend: tokenizers.Tokenizer) -> bool:
    """Returns whether decode() removes spaces; transformers does so for BPE only if forced."""
    if not getattr(loaded, "clean_up_tokenization_spaces", False):
        return False
    forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    return not isinstance(backend.model, models.BPE) or bool(getattr(loaded, forced, False))


def _max_length(loaded: Any) -> int | None:
    length = getattr(loaded, "model_max_length", None)
    return length if isinstance(length, int) and length < _NO_LIMIT else None


def _marian(folder: ModelFolder, loaded: Any) -> ImportedTokenizer:
    """Returns two tokenizers: Marian's pieces come from SentencePiece, ids from vocab.json."""
    if getattr(loaded, "separate_vocabs", False):
        vocabulary: Mapping[str, int] = loaded.target_encoder
    else:
        vocabulary = loaded.encoder
    folder.warn(
        "punctuation is not normalised as Marian's sacremoses does it; give text with plain quotes"
    )
    return ImportedTokenizer(
        decoder=_pieces_only(vocabulary, loaded.unk_token),
        encoder=_unigram(folder, loaded),
        skip=tuple(sorted(loaded.all_special_ids)),
        tidy=False,
        suffix=(loaded.eos_token_id,),
        max_length=_max_length(loaded),
    )


def _unigram(folder: ModelFolder, loaded: Any) -> bytes:
    """Returns a tokenizer with the pieces of Marian's source.spm and the ids of its vocab.json."""
    import sentencepiece.sentencepiece_model_pb2 as schema

    model: Any = schema.ModelProto()  # type: ignore[attr-defined]  # made by protobuf
    model.ParseFromString((folder.path / "source.spm").read_bytes())
    if model.trainer_spec.model_type != _UNIGRAM:
        raise ExportError(f"{folder.path}/source.spm is not a unigram model, which Marian has")
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == _NORMAL_PIECE}
    codes = getattr(loaded, "supported_language_codes", None) or []
    special_tokens = [*codes, loaded.unk_token, loaded.eos_token, loaded.pad_token]
    # A piece that source.spm does not have must match no text, so its name begins with a character
    # of Unicode's private area. Single characters match with the lowest score: SentencePiece
    # returns an unknown character unchanged, and Marian looks it up in vocab.json.
    rows = [(f"\ue000{index}", 0.0) for index in range(max(loaded.encoder.values()) + 1)]
    unlikely = min(scores.values()) - _UNKNOWN_PENALTY
    for piece, index in loaded.encoder.items():
        if piece in scores or piece in special_tokens or len(piece) == 1:
            rows[index] = (piece, scores.get(piece, unlikely))
    unknown = loaded.encoder[loaded.unk_token]
    tokenizer = tokenizers.Tokenizer(models.Unigram(rows, unk_id=unknown, byte_fallback=False))
    tokenizer.normalizer = _normalizer(model.normalizer_spec.precompiled_charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="always")
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(name, special=True, normalized=False) for name in special_tokens]
    )
    return tokenizer.to_str().encode()


def _normalizer(charsmap: bytes) -> normalizers.Normalizer:
    """Returns SentencePiece's normalizer: its table of characters, then single spaces."""
    spaces = [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    table = [normalizers.Precompiled(charsmap)] if charsmap else []
    return normalizers.Sequence([*table, *spaces])


def _pieces_only(vocabulary: Mapping[str, int], unknown: str) -> bytes:
    """Returns a `tokenizer.json` that can only decode, and reads SentencePiece's pieces."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel(dict(vocabulary), unk_token=unknown))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.Fuse(),
            decoders.Strip(" ", _ALL_SPACES, _ALL_SPACES),
        ]
    )
    return tokenizer.to_str().encode()

"""Writes tiny Hugging Face folders, as `save_pretrained` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "pack my box with five dozen liquor jugs, please!",
    "how do you do? I don't know; he's gone.",
    "sphinx of black quartz, judge my vow",
] * 8
WHISPER_GENERATION = {
    "decoder_start_token_id": 50, "eos_token_id": 49, "pad_token_id": 49, "max_length": 30,
    "suppress_tokens": [-1, 3, 4], "begin_suppress_tokens": [5, 49],
    "no_timestamps_token_id": 60,
}  # fmt: skip


def save_tokenizer(folder: Path, kind: str = "bpe", **settings: Any) -> Any:
    """Trains a tokenizer on SENTENCES, saves it and returns it.

    Args:
        folder: existing folder of the files.
        kind: model of the tokenizer: `bpe`, `wordpiece` or `unigram`.
        settings: arguments of the tokenizer's class.
    """
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    decoders, pre_tokenizers = tokenizers.decoders, tokenizers.pre_tokenizers
    if kind == "bpe":
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(),
            decoders.ByteLevel(),
        )
        trainer: Any = tokenizers.trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    elif kind == "wordpiece":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]"]
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.BertPreTokenizer(),
            decoders.WordPiece(cleanup=False),
        )
        trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=150, special_tokens=special)
    else:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.Metaspace(),
            decoders.Metaspace(),
        )
        trainer = tokenizers.trainers.UnigramTrainer(
            vocab_size=120, special_tokens=special, unk_token="<unk>"
        )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if kind != "wordpiece":
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    if kind == "wordpiece":
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[DEC]"}
    loaded = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **settings)
    loaded.save_pretrained(folder)
    return loaded


def save_json(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Writes a JSON file of a folder."""
    (folder / name).write_text(json.dumps(content))


def save_bart(folder: Path, **generation: Any) -> Path:
    """Writes the settings of a BART, whose encoder takes text, and returns the folder."""
    transformers.BartConfig(vocab_size=400, max_position_embeddings=64).save_pretrained(folder)
    defaults = {
        "decoder_start_token_id": 2, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
        "max_length": 40,
    }  # fmt: skip
    save_json(folder, "generation_config.json", defaults | generation)
    save_tokenizer(folder)
    return folder


def save_whisper(folder: Path, **generation: Any) -> Path:
    """Writes the config and feature extractor of a Whisper, and returns the folder."""
    config = transformers.WhisperConfig(
        vocab_size=100, num_mel_bins=80, max_source_positions=100, max_target_positions=40
    )
    config.save_pretrained(folder)
    save_json(folder, "generation_config.json", WHISPER_GENERATION | generation)
    transformers.WhisperFeatureExtractor(chunk_length=2).save_pretrained(folder)
    return folder


def train_pieces(path: Path) -> tuple[Path, list[str]]:
    """Trains a SentencePiece model; returns its file and its pieces without the special ones."""
    sentencepiece = pytest.importorskip("sentencepiece")
    prefix = path.with_suffix("")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_prefix=str(prefix), vocab_size=54,
        model_type="unigram", minloglevel=2,
    )  # fmt: skip
    Path(f"{prefix}.model").rename(path)
    loaded = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return path, [loaded.id_to_piece(i) for i in range(3, loaded.get_piece_size())]

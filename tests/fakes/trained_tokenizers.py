"""Small tokenizers of three kinds, trained on a few lines."""

from __future__ import annotations

from tokenizers import Tokenizer as Made
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXTS = [
    "the quick brown fox, naïve and jumping",
    "pack my box with five jugs",
    "日本語 жук 🙂 ok",
] * 3
SPECIAL = ["<s>", "</s>", "<unk>"]


def byte_level() -> Made:
    made = Made(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    return made


def metaspace() -> Made:
    made = Made(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=SPECIAL, unk_token="<unk>")
    made.train_from_iterator(TEXTS, trainer)
    return made


def word_pieces() -> Made:
    made = Made(models.WordPiece(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL)
    made.train_from_iterator(TEXTS, trainer)
    return made

"""Writes an artificial byte-level tokenizer with Whisper's special tokens, for the rivals."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.benchmarks.cpu.workloads import WHISPER_END as END

TOKENS = 51_865
_TIMESTAMPS = 1501
_LANGUAGES = """
    en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th
    ur hr bg lt la mi ml cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr
    pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt
    haw ln ha ba jw su
"""
_TASKS = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")


def write_tokenizer(folder: Path) -> dict[str, int]:
    """Writes the tokenizer's files and returns the ids of the language tokens.

    Some rivals do not load a Whisper model without a tokenizer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words, merges = _words_and_merges()
    special = ["<|endoftext|>", "<|startoftranscript|>"]
    special += [f"<|{name}|>" for name in (*_LANGUAGES.split(), *_TASKS)]
    times = [f"<|{number * 0.02:.2f}|>" for number in range(_TIMESTAMPS)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in times])
    assert tokenizer.get_vocab_size() == TOKENS
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {token: END + number for number, token in enumerate([*special, *times])}
    lines = "".join(f"{a} {b}\n" for a, b in merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{lines}", encoding="utf-8")
    ends = ("unk_token", "bos_token", "eos_token", "pad_token")
    config = {
        "tokenizer_class": "WhisperTokenizer",
        "processor_class": "WhisperProcessor",
        "model_max_length": 1024,
        **dict.fromkeys(ends, special[0]),
    }
    for name, content in (
        ("vocab.json", vocabulary),
        ("added_tokens.json", added),
        ("tokenizer_config.json", config),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return {f"<|{name}|>": added[f"<|{name}|>"] for name in _LANGUAGES.split()}


def _words_and_merges() -> tuple[list[str], list[tuple[str, str]]]:
    """Returns the words (256 byte letters, then pairs of them) and the merges of Whisper's size."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable]
    letters += [chr(256 + number) for number in range(256 - len(letters))]
    pairs = itertools.islice(itertools.product(letters, letters), END - len(letters))
    merges = list(pairs)
    return [*letters, *(a + b for a, b in merges)], merges

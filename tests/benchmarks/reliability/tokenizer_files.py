"""Tokenizer files of strangers with right hashes: a text, or one error of ours, in bounded RAM."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid_deploy.runtime.session.session import load_session
from tests.benchmarks.reliability.inputs import damaged
from tests.benchmarks.reliability.row import Row
from tests.benchmarks.reliability.tiny_bundle import copy_of, manifest_of, record_of, sealed
from tests.benchmarks.reliability.trials import crash, row_of_trials
from tests.fakes.plain_tokenizer import plain_tokenizer

_CRASH = -1
_WORDS = "_^$abcdefgh"
_IDS = {word: index for index, word in enumerate(_WORDS)}
_TEXTS: tuple[Any, ...] = ("", "a", "b", "aa", "x" * 50, "\u2581", "\x00", "é", None, 3, "a" * 9999)
_REGEXES = (".", "", "(a|a)*$", "(a+)+$", "a*", r"\s+", " {2,}", "(", ".{2}?", "(?=a)", "(a*)*b")
_NUMBERS: tuple[Any, ...] = (0, 1, -1, 9, 2**31, 2**62, 2**64, 0.5, None, "3")
_TABLES = (b"", b"AAA", b"\0\0\0\0a\0b\0", b"\xff" * 16, b"\4\0\0\0\1\2\3\4xyz\0", b"\1\0\0\0abc")


def check(count: int, seed: int, *, bundle: Path | None = None) -> Row:
    """Gives a bundle `count` tokenizer files, seals it again and runs it, with words to ask.

    Args:
        count: number of files.
        seed: seed of the first one.
        bundle: bundle that is changed, as a copy; None exports a tiny one.
    """
    return row_of_trials(
        "tokenizer files of strangers with right hashes",
        "a crash of the process",
        lambda original, scratch: TokenizerTrial(original, copy_of(original, scratch)),
        range(seed, seed + count),
        (_CRASH,),
        bundle=bundle,
    )


@dataclass(frozen=True)
class TokenizerTrial:
    """Puts a tokenizer file into a bundle, seals it again, and runs its golden sample.

    Attributes:
        original: the bundle.
        copied: copy of the bundle, which gets the file.
    """

    original: Path
    copied: Path

    def __call__(self, seed: int) -> str:
        """Returns that the bundle was run.

        Raises:
            HybridDeployError: the bundle was refused, or failed.
        """
        if seed == _CRASH:
            return crash()
        rng = random.Random(seed)
        content = json.dumps(hostile_tokenizer(rng)).encode()
        content = damaged(content, rng) if rng.random() < 0.1 else content
        manifest = manifest_of(self.original)
        manifest["files"]["tokenizer.json"] = record_of(content)
        manifest["vocabulary"] = {"type": "tokenizer", "file": "tokenizer.json"}
        manifest["prompt"] = {"text": "{prompt}", "default": rng.choice(("a", "aab", "a" * 60))}
        (self.copied / "tokenizer.json").write_bytes(content)
        (self.copied / "manifest.json").write_bytes(sealed(json.dumps(manifest).encode()))
        session = load_session(self.copied, threads=1, large_pages=False)
        page = self.original / "golden" / "page.png"
        session.run_files([page], prompt=[3])
        session.run_files([page])
        return "run"


def hostile_tokenizer(rng: random.Random) -> dict[str, Any]:
    """Returns a tokenizer with one or two hostile parts."""
    tokenizer = plain_tokenizer(_IDS)
    hostile: dict[str, Callable[[], Any]] = {
        "normalizer": lambda: _steps("normalizers", _normalizer, rng),
        "pre_tokenizer": lambda: _steps("pretokenizers", _pre_tokenizer, rng),
        "decoder": lambda: _steps("decoders", _decoder, rng),
        "model": lambda: _model(rng),
        "post_processor": lambda: _steps("processors", _post_processor, rng),
    }
    for part in rng.sample(sorted(hostile), rng.choice((1, 1, 2))):
        tokenizer[part] = hostile[part]()
    return tokenizer


def _steps(kind: str, step: Any, rng: random.Random) -> Any:
    """Returns one step, or a sequence of equal or different ones."""
    count = rng.choice((1, 1, 1, 2, 10, 40, 300))
    if count == 1:
        return step(rng)
    steps = [step(rng)] * count if rng.random() < 0.7 else [step(rng) for _ in range(count)]
    return {"type": "Sequence", kind: steps}


def _replacement(rng: random.Random) -> dict[str, Any]:
    kind, values = rng.choice((("String", _TEXTS), ("Regex", _REGEXES)))
    pattern = {kind: rng.choice(values)}
    return {"type": "Replace", "pattern": pattern, "content": rng.choice(_TEXTS)}


def _normalizer(rng: random.Random) -> dict[str, Any]:
    table = base64.b64encode(rng.choice(_TABLES)).decode()
    return rng.choice(
        (
            _replacement(rng),
            {"type": "Prepend", "prepend": rng.choice(_TEXTS)},
            {"type": rng.choice(("NFD", "NFKD", "Lowercase", "Nmt", "ByteLevel", "NoSuch"))},
            {"type": "Precompiled", "precompiled_charsmap": rng.choice((table, "AAAA", "*", None))},
        )
    )


def _pre_tokenizer(rng: random.Random) -> dict[str, Any]:
    pattern = {rng.choice(("Regex", "String")): rng.choice(_REGEXES)}
    return rng.choice(
        (
            {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False},
            {"type": "FixedLength", "length": rng.choice(_NUMBERS)},
            {"type": "Metaspace", "replacement": rng.choice(_TEXTS), "prepend_scheme": "always"},
            {"type": rng.choice(("Whitespace", "BertPreTokenizer", "UnicodeScripts"))},
        )
    )


def _decoder(rng: random.Random) -> dict[str, Any]:
    start, stop = rng.choice(_NUMBERS), rng.choice(_NUMBERS)
    return rng.choice(
        (
            _replacement(rng),
            {"type": "Strip", "content": rng.choice(_TEXTS), "start": start, "stop": stop},
            {"type": "BPEDecoder", "suffix": rng.choice(_TEXTS)},
            {"type": "WordPiece", "prefix": rng.choice(_TEXTS), "cleanup": True},
            {"type": rng.choice(("Fuse", "ByteFallback", "ByteLevel"))},
        )
    )


def _post_processor(rng: random.Random) -> dict[str, Any]:
    text, token = ({kind: {"id": "A", "type_id": 0}} for kind in ("Sequence", "SpecialToken"))
    pieces, ids = rng.choice((1, 2, 30, 2000)), rng.choice((0, 1, 30, 2000))
    single = [token] * pieces + [text] * rng.choice((1, 1, 0, 2, 2000))
    special_token = {"id": "A", "ids": [0] * ids, "tokens": ["a"] * ids}
    special = rng.choice(({"A": special_token}, {"A": list(special_token.values())}, {}))
    pair = [text, {"Sequence": {"id": "B", "type_id": 1}}]
    template = {"single": single, "pair": pair, "special_tokens": special}
    ends = {"sep": ["a", rng.choice(_NUMBERS)], "cls": ["a", 0]}
    return rng.choice(
        (
            {"type": "TemplateProcessing"} | template,
            template,
            {"type": rng.choice(("BertProcessing", "RobertaProcessing", "NoSuch"))} | ends,
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": rng.random() < 0.9},
        )
    )


def _model(rng: random.Random) -> dict[str, Any]:
    texts = [rng.choice((word, word * 20, word * 200_000)) for word in _WORDS]
    if rng.random() < 0.7:
        texts = list(_WORDS)
    vocabulary = {text: index for index, text in enumerate(texts[: rng.choice((0, 5, 11, 11, 11))])}
    return rng.choice(
        (
            {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"},
            {"type": "WordLevel", "vocab": vocabulary, "unk_token": "none"},
            {
                "type": "WordPiece", "vocab": vocabulary, "unk_token": "a",
                "continuing_subword_prefix": "", "max_input_chars_per_word": rng.choice(_NUMBERS),
            },
            {
                "type": "Unigram", "vocab": [[text, -1.0] for text in texts],
                "unk_id": rng.choice(_NUMBERS), "byte_fallback": False,
            },
            {"type": "BPE", "vocab": vocabulary, "merges": [["a", rng.choice(("a", "b"))]]},
        )
    )  # fmt: skip

"""Tokenizer files of strangers: a line for each that would hang, panic or fill the RAM."""

from __future__ import annotations

import base64
import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest

from hybrid_deploy.bundle.manifest import Tokenizer
from hybrid_deploy.errors import BundleError, InputError
from hybrid_deploy.runtime import tokenizer_trial
from hybrid_deploy.runtime.deadline import StoppedError, Until
from hybrid_deploy.runtime.tokenizer import load_tokenizer, text_of
from hybrid_deploy.runtime.tokenizer_file import MAX_TEXT_BYTES
from tests.fakes.plain_tokenizer import plain_tokenizer

PLAIN = plain_tokenizer({"a": 0, "bb": 1, "b" * 60 + "!": 2})


def replace(old: str, new: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: old}, "content": new}


def sequence(kind: str, step: dict[str, Any], count: int) -> dict[str, Any]:
    return {"type": "Sequence", kind: [step] * count}


def charsmap(table: bytes) -> dict[str, Any]:
    encoded = base64.b64encode(table).decode()
    return {"type": "Precompiled", "precompiled_charsmap": encoded}


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
WORD_PIECE = {
    "type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "continuing_subword_prefix": "#",
    "max_input_chars_per_word": 10**9,
}  # fmt: skip


LONG_MARK = WORD_PIECE | {"continuing_subword_prefix": "#" * 101, "max_input_chars_per_word": 100}
BYTE_LEVEL = {
    "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False,
}  # fmt: skip
FOLDED = [replace("a", "\ufdfa"), {"type": "NFKD"}, replace("\u0644", "a")]


def added_token(content: str, normalized: bool = True) -> dict[str, Any]:
    no = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    return {"id": 3, "content": content, "normalized": normalized} | no


ADDED = [added_token("a" * 7000)]


def template(pieces: int, ids: int, texts: int = 1) -> dict[str, Any]:
    """Returns a post-processor that adds a token of several ids several times."""
    text, token = ({kind: {"id": "A", "type_id": 0}} for kind in ("Sequence", "SpecialToken"))
    return {
        "type": "TemplateProcessing",
        "single": [token] * pieces + [text] * texts,
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"A": {"id": "A", "ids": [0] * ids, "tokens": ["a"] * ids}},
    }


ROBERTA = {
    "type": "RobertaProcessing", "sep": ["a", 0], "cls": ["a", 0], "trim_offsets": True,
    "add_prefix_space": False,
}  # fmt: skip


def written(tmp_path: Path, **changes: Any) -> str:
    (tmp_path / "t.json").write_text(json.dumps(copy.deepcopy(PLAIN) | changes))
    return "t.json"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"decoder": sequence("decoders", replace(".", "xx", "Regex"), 40)}, "one decoded token"),
        ({"decoder": sequence("decoders", replace("", "x"), 40)}, "one decoded token"),
        ({"normalizer": sequence("normalizers", replace("a", "a" * 10), 10)}, "are made of one"),
        ({"normalizer": sequence("normalizers", {"prepend": "aa"}, 20)}, "are made of one"),
        ({"normalizer": sequence("normalizers", {"type": "ByteLevel"}, 26)}, "are made of one"),
        ({"pre_tokenizer": sequence("pretokenizers", BYTE_LEVEL, 26)}, "are made of one"),
        ({"normalizer": {"type": "Sequence", "normalizers": FOLDED * 6}}, "are made of one"),
        ({"pre_tokenizer": sequence("pretokenizers", SPLIT, 257)}, "objects describe its steps"),
        ({"normalizer": charsmap(b"\0\0\0")}, "is no table of characters"),
        ({"normalizer": charsmap(b"\xff" * 12)}, "is no table of characters"),
        ({"normalizer": charsmap(b"\0\0\0\0" + b"x" * 100_001)}, "are made of one"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "*"}}, "is not base64"),
        ({"model": WORD_PIECE}, "characters of a word"),
        ({"model": LONG_MARK}, "101 characters mark a part of a word, at most 100"),
        ({"model": PLAIN["model"] | {"end_of_word_suffix": "x" * 101}}, "mark a part of a word"),
        ({"normalizer": replace("a", "b" * 9999), "added_tokens": ADDED}, "bytes of added tokens"),
        ({"model": PLAIN["model"] | {"vocab": {"a" * 100_001: 0}}}, "one decoded token"),
        ({"post_processor": template(100, 11)}, "1100 tokens are added to a text, at most 1000"),
        ({"post_processor": template(0, 0, texts=2)}, "2 places of a text in its template"),
        ({"post_processor": sequence("processors", template(10, 10), 11)}, "are added to a text"),
        ({"post_processor": sequence("processors", ROBERTA, 501)}, "are added to a text"),
        ({"post_processor": template(1, 1) | {"special_tokens": {}}}, "has no ids of 'A'"),
        ({"post_processor": template(1, 1) | {"type": None}}, "of an unknown type, 'None'"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    file = written(tmp_path, **changes)
    with pytest.raises(BundleError, match=rf"t\.json is not a tokenizer: .*{reason}"):
        load_tokenizer(tmp_path, file)


def test_a_key_twice_is_read_as_it_was_checked(tmp_path: Path) -> None:
    hostile = json.dumps(charsmap(b"\xff" * 12))
    content = json.dumps(PLAIN).replace('"normalizer": null', f'"normalizer": {hostile}', 1)
    content = content[:-1] + ', "normalizer": null}'
    (tmp_path / "t.json").write_text(content)
    assert load_tokenizer(tmp_path, "t.json").decode([0]) == "a"


def test_a_panic_is_one_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    split = SPLIT | {"pattern": {"Regex": "(b|b)*$"}}
    tokenizer = load_tokenizer(tmp_path, written(tmp_path, pre_tokenizer=split))
    with pytest.raises(BundleError, match=r"tokenizer fails: .*retry-limit.*; export it again"):
        tokenizer.encode("b" * 60 + "!", add_special_tokens=False)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "decoder", [replace("(b|b)*$", "", "Regex"), {"type": "Strip", "content": "b", "stop": 9}]
)
def test_a_panic_of_the_decoder_is_one_error(
    tmp_path: Path, decoder: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, decoder={"start": 0} | decoder)
    with pytest.raises(BundleError, match="the bundle's tokenizer fails"):
        text_of([2, 1], Tokenizer(file), tmp_path)
    assert capfd.readouterr().err == ""


def test_long_texts_of_steps_that_lengthen_them(tmp_path: Path) -> None:
    longer = sequence("normalizers", replace("a", "a" * 10), 3)
    tokenizer = load_tokenizer(tmp_path, written(tmp_path, normalizer=longer))
    assert tokenizer.encode("aa", add_special_tokens=False).ids == [0]
    message = "may make 70000000 bytes of it, at most 8388608 are taken; split it"
    with pytest.raises(InputError, match=message):
        tokenizer.encode("a" * 70_000, add_special_tokens=False)


def test_the_size_of_a_text_is_that_after_the_normalizer_where_that_is_soon_known(
    tmp_path: Path,
) -> None:
    file = written(tmp_path, normalizer=replace("c", "b" * 10_000))
    tokenizer = load_tokenizer(tmp_path, file)
    assert 839 * tokenizer.facts.growth > MAX_TEXT_BYTES
    assert tokenizer.encode("a" * 839, add_special_tokens=False).ids == [0]
    with pytest.raises(InputError, match="a text of 839 bytes is too long"):
        tokenizer.encode("c" * 839, add_special_tokens=False)


@pytest.mark.parametrize("letter", ["\u00e9", " ", "a"])
def test_steps_make_no_more_bytes_than_they_state(tmp_path: Path, letter: str) -> None:
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}
    for step in (BYTE_LEVEL, BYTE_LEVEL | {"add_prefix_space": True}, metaspace | {"split": True}):
        tokenizer = load_tokenizer(tmp_path, written(tmp_path, pre_tokenizer=step))
        pieces = tokenizer.library.pre_tokenizer.pre_tokenize_str(letter)
        made = sum(len(piece.encode()) for piece, _ in pieces)
        assert made <= len(letter.encode()) * tokenizer.facts.growth


def test_a_regex_that_searches_the_added_tokens_is_refused_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_trial, "_READING_S", 3.0)
    slow = replace("a*a*(?!.)[^!]", "b", "Regex")
    added = [added_token("a" * (2500 + index) + "!") | {"id": 3 + index} for index in range(50)]
    file = written(tmp_path, normalizer=slow, added_tokens=added)
    with pytest.raises(BundleError, match="its added tokens take over 3 s to normalize"):
        load_tokenizer(tmp_path, file)
    with (
        pytest.raises(StoppedError, match="was not read when the time was over"),
        Until(time.perf_counter() + 0.5),
    ):
        load_tokenizer(tmp_path, file)


def test_a_regex_that_searches_short_added_tokens_is_read(tmp_path: Path) -> None:
    step = replace("(?i)A(?=x)", "b", "Regex")
    file = written(tmp_path, normalizer=step, added_tokens=[added_token("ax")])
    tokenizer = load_tokenizer(tmp_path, file)
    assert not tokenizer.facts.reads_quickly
    assert tokenizer.encode("ax", add_special_tokens=False).ids == [3]


@pytest.mark.parametrize("regex", [r"\s+", " {2,}", r"[!\"\#\-\]]"])
def test_a_regex_of_one_class_needs_no_trial(tmp_path: Path, regex: str) -> None:
    step = replace(regex, " ", "Regex")
    file = written(tmp_path, normalizer=step, added_tokens=[added_token("ax")])
    assert load_tokenizer(tmp_path, file).facts.reads_quickly


def test_the_tries_of_word_piece_count_its_words(tmp_path: Path) -> None:
    model = WORD_PIECE | {"max_input_chars_per_word": 1000}
    assert load_tokenizer(tmp_path, written(tmp_path, model=model)).facts.tries > 10_000


def test_steps_of_known_tokenizers(tmp_path: Path) -> None:
    steps = [
        replace("``", '"'), {"type": "NFKD"}, {"type": "Lowercase"}, {"prepend": "\u2581"},
        charsmap(b"\4\0\0\0abcd" + b"x" * 33 + b"\0"), replace(" {2,}", " ", "Regex"),
        replace(r"\s+", " ", "Regex"), replace(" ", "\u2581"),
    ]  # fmt: skip
    steps[3]["type"] = "Prepend"
    normalizer = {"type": "Sequence", "normalizers": steps}
    tokenizer = load_tokenizer(tmp_path, written(tmp_path, normalizer=normalizer))
    assert tokenizer.facts.growth == 33 * 4 * 3 * 11 * 1.5
    assert tokenizer.facts.ids == {0, 1, 2}


def test_post_processors_of_known_tokenizers(tmp_path: Path) -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    steps = [ROBERTA, template(3, 2), byte_level]
    for step, count in zip(
        (*steps, {"type": "Sequence", "processors": steps}), (2, 6, 0, 8), strict=True
    ):
        tokenizer = load_tokenizer(tmp_path, written(tmp_path, post_processor=step))
        assert len(tokenizer.encode("a", add_special_tokens=True).ids) == 1 + count

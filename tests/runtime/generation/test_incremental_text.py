"""Text while its tokens come, and the strings that end it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Made

from hybrid_deploy.bundle.manifest import Tokenizer, Vocabulary
from hybrid_deploy.runtime.generation.incremental_text import (
    IncrementalDetokenizer,
    StopStrings,
    empty_detokenizer,
)
from hybrid_deploy.runtime.tokenizer import text_of
from tests.fakes.trained_tokenizers import TEXTS, byte_level, metaspace, word_pieces


@pytest.fixture(params=[byte_level, metaspace, word_pieces])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Made, Tokenizer]:
    made: Made = request.param()
    made.save(str(tmp_path / "tokenizer.json"))
    return made, Tokenizer("tokenizer.json", skip=(0, 1, 2))


def read(
    begin: IncrementalDetokenizer, tokens: list[int]
) -> tuple[list[str], IncrementalDetokenizer]:
    """Returns the certain text after every token, and the last reading."""
    texts, reading = [], begin
    for token in tokens:
        reading = reading.after(token)
        texts.append(reading.text)
    return texts, reading


def test_pieces_make_the_whole_text(tokenizer: tuple[Made, Tokenizer], tmp_path: Path) -> None:
    made, spec = tokenizer
    rng = np.random.default_rng(2)
    sequences = [made.encode(text, add_special_tokens=False).ids for text in TEXTS]
    sequences += [rng.integers(0, made.get_vocab_size(), 25).tolist() for _ in range(60)]
    for tokens in sequences:
        texts, reading = read(empty_detokenizer(spec, tmp_path), [0, *tokens, 1])
        assert reading.full_text == text_of(tokens, spec, tmp_path)
        for before, after in itertools.pairwise(texts):
            assert after.startswith(before), "what was certain stays"
        assert all(text.count("\ufffd") <= reading.full_text.count("\ufffd") for text in texts)


def test_a_character_of_several_tokens_comes_when_it_is_complete(tmp_path: Path) -> None:
    made = byte_level()
    made.save(str(tmp_path / "tokenizer.json"))
    tokens = made.encode("a ∞ b", add_special_tokens=False).ids
    texts, _ = read(empty_detokenizer(Tokenizer("tokenizer.json"), tmp_path), tokens)
    assert len(tokens) > len("a ∞ b"), "its bytes are tokens of their own"
    assert not any("\ufffd" in text for text in texts)
    assert texts[-1] == "a ∞ b"


def test_a_table_of_characters(tmp_path: Path) -> None:
    begin = empty_detokenizer(Vocabulary(("_", "^", "a", "b"), (0, 1)), tmp_path)
    texts, reading = read(begin, [1, 2, 3, 9, 0, 2])
    assert texts == ["", "a", "ab", "ab?", "ab?", "ab?a"]
    assert reading.full_text == "ab?a"
    assert begin.text == "", "a reading is never changed"


NOTHING = IncrementalDetokenizer(lambda tokens: "", frozenset())


@pytest.mark.parametrize(
    ("text", "searched", "place"),
    [
        ("abcdef", 0, 2),
        ("abxx", 0, None),
        ("xxef", 2, 2),  # a later string counts from where it could begin
        ("xxcd", 3, 2),
        ("cdxx", 4, None),  # it was searched before
        ("efcd", 0, 0),
    ],
)
def test_where_a_stop_sequence_begins(text: str, searched: int, place: int | None) -> None:
    assert StopStrings(("cd", "ef"), NOTHING).find(text, searched) == place


def test_what_may_become_a_stop_sequence_is_not_certain() -> None:
    stop = StopStrings(("\n\n", "END"), NOTHING)
    assert [stop.certain_length(text) for text in ("ab", "abE", "abEN", "ab\n", "ENx", "")] == [
        2, 2, 2, 2, 3, 0,
    ]  # fmt: skip

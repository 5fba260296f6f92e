"""Text that is decoded token by token, and the strings that end it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as HuggingFaceTokenizer

from hybrid_deploy.bundle.manifest import Tokenizer, Vocabulary
from hybrid_deploy.runtime.generation.incremental_text import (
    IncrementalDetokenizer,
    StopStrings,
    empty_detokenizer,
)
from hybrid_deploy.runtime.tokenizer import text_of
from tests.fakes.trained_tokenizers import TEXTS, byte_level, metaspace, word_pieces


@pytest.fixture(params=[byte_level, metaspace, word_pieces])
def trained(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[HuggingFaceTokenizer, Tokenizer]:
    tokenizer: HuggingFaceTokenizer = request.param()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tokenizer, Tokenizer("tokenizer.json", skip=(0, 1, 2))


def read(
    empty: IncrementalDetokenizer, tokens: list[int]
) -> tuple[list[str], IncrementalDetokenizer]:
    """Returns the final text after every token, and the last detokenizer."""
    texts, detokenizer = [], empty
    for token in tokens:
        detokenizer = detokenizer.after(token)
        texts.append(detokenizer.text)
    return texts, detokenizer


def test_pieces_make_the_full_text(
    trained: tuple[HuggingFaceTokenizer, Tokenizer], tmp_path: Path
) -> None:
    tokenizer, spec = trained
    rng = np.random.default_rng(2)
    sequences = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    sequences += [rng.integers(0, tokenizer.get_vocab_size(), 25).tolist() for _ in range(60)]
    for tokens in sequences:
        texts, detokenizer = read(empty_detokenizer(spec, tmp_path), [0, *tokens, 1])
        assert detokenizer.full_text == text_of(tokens, spec, tmp_path)
        for before, after in itertools.pairwise(texts):
            assert after.startswith(before), "final text stays"
        assert all(text.count("\ufffd") <= detokenizer.full_text.count("\ufffd") for text in texts)


def test_a_character_of_several_tokens_comes_when_it_is_complete(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokens = tokenizer.encode("a ∞ b", add_special_tokens=False).ids
    texts, _ = read(empty_detokenizer(Tokenizer("tokenizer.json"), tmp_path), tokens)
    assert len(tokens) > len("a ∞ b"), "its bytes are separate tokens"
    assert not any("\ufffd" in text for text in texts)
    assert texts[-1] == "a ∞ b"


def test_a_vocabulary_of_characters(tmp_path: Path) -> None:
    empty = empty_detokenizer(Vocabulary(("_", "^", "a", "b"), (0, 1)), tmp_path)
    texts, detokenizer = read(empty, [1, 2, 3, 9, 0, 2])
    assert texts == ["", "a", "ab", "ab?", "ab?", "ab?a"]
    assert detokenizer.full_text == "ab?a"
    assert empty.text == "", "a detokenizer is immutable"


NOTHING = IncrementalDetokenizer(lambda tokens: "", frozenset())


@pytest.mark.parametrize(
    ("text", "searched", "index"),
    [
        ("abcdef", 0, 2),
        ("abxx", 0, None),
        ("xxef", 2, 2),  # the search starts where a string may begin
        ("xxcd", 3, 2),
        ("cdxx", 4, None),  # this part was searched before
        ("efcd", 0, 0),
    ],
)
def test_index_of_a_stop_string(text: str, searched: int, index: int | None) -> None:
    assert StopStrings(("cd", "ef"), NOTHING).find(text, searched) == index


def test_text_that_may_become_a_stop_string_is_not_certain() -> None:
    stop = StopStrings(("\n\n", "END"), NOTHING)
    assert [stop.certain_length(text) for text in ("ab", "abE", "abEN", "ab\n", "ENx", "")] == [
        2, 2, 2, 2, 3, 0,
    ]  # fmt: skip

"""Constraints on the next token, compared with trying every token of the vocabulary."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import regex

from hybrid_deploy.bundle.manifest import Tokenizer, Vocabulary
from hybrid_deploy.errors import MissingDependencyError, UsageError
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.generation import constraints
from hybrid_deploy.runtime.generation.constraints import AllowedTokens, Pattern, compile_pattern
from hybrid_deploy.runtime.generation.incremental_text import (
    IncrementalDetokenizer,
    empty_detokenizer,
)
from tests.fakes.trained_tokenizers import byte_level, metaspace

CHARACTERS = Vocabulary(tuple("_^$abcdefgh0123456789-"), (0, 1, 2))
END, PROMPT = 2, 1
PATTERNS = ("[a-d]{2}-[0-9]+", "a*", "(abc|abd|ha+)[0-9]?", "[^a-h]+", ".*", "(?i)A[B-D]*")


@pytest.fixture(params=["characters", "bytes", "metaspace"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[IncrementalDetokenizer, int]:
    """Returns a detokenizer without tokens, and the number of tokens in its vocabulary."""
    if request.param == "characters":
        return empty_detokenizer(CHARACTERS, tmp_path), len(CHARACTERS.tokens)
    tokenizer = byte_level() if request.param == "bytes" else metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return empty_detokenizer(
        Tokenizer("tokenizer.json", (0, 1, 2)), tmp_path
    ), tokenizer.get_vocab_size()


def allowed_by_trying(
    empty: IncrementalDetokenizer, pattern: str, tokens: list[int], size: int
) -> set[int]:
    """Returns the tokens that a pattern allows after `tokens`, by trying each of them."""
    detokenizer = empty
    for token in tokens:
        detokenizer = detokenizer.after(token)
    compiled, allowed = regex.compile(pattern), set()
    for token in range(size):
        if token == END:
            fits = compiled.fullmatch(detokenizer.full_text)
        else:
            following = detokenizer.after(token)
            fits = following is not detokenizer and compiled.fullmatch(
                following.full_text, partial=True
            )
        if fits:
            allowed.add(token)
    return allowed


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pattern_allows_all_tokens_that_fit_or_the_most_probable_of_them(
    empty: tuple[IncrementalDetokenizer, int], pattern: str
) -> None:
    detokenizer, size = empty
    rng, steps = np.random.default_rng(4), 0
    for _ in range(6):
        tokens: list[int] = []
        all_fitting, best_three = (
            Pattern(pattern, detokenizer, (END,), needed) for needed in (None, 3)
        )
        for _ in range(7):
            logits = rng.standard_normal(size).astype(np.float32)
            logits[rng.integers(3, size)] = -np.inf  # excluded by another processor
            allowed = allowed_by_trying(detokenizer, pattern, tokens, size)
            expected = np.where(np.isin(np.arange(size), [*allowed]), logits, -np.inf)
            np.testing.assert_array_equal(apply(all_fitting, logits, tokens), expected)
            best = apply(best_three, logits, tokens)
            three = [t for t in np.argsort(-expected)[:3] if expected[t] > -np.inf]
            assert all(best[t] == logits[t] for t in three)
            assert not (best[expected == -np.inf] > -np.inf).any()
            possible = np.flatnonzero(expected > -np.inf)
            steps += 1
            if not len(possible) or (token := int(rng.choice(possible))) == END:
                break
            tokens.append(token)
    assert steps > 6


def apply(processor: Pattern | AllowedTokens, logits: FloatArray, tokens: list[int]) -> FloatArray:
    """Returns the logits after the processor."""
    changed: FloatArray = logits.copy()
    processor(changed, np.array([PROMPT, *tokens]), 1)
    return changed


def test_a_fitting_token_is_found_behind_many_more_probable_ones(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    detokenizer = empty_detokenizer(Tokenizer("tokenizer.json", (0, 1, 2)), tmp_path)
    size, digits = tokenizer.get_vocab_size(), tokenizer.encode("7", add_special_tokens=False).ids
    logits = np.zeros(size, np.float32)
    logits[digits] = -100
    allowed = apply(Pattern("[0-9]", detokenizer, (END,), 1), logits, [])
    assert int(allowed.argmax()) in allowed_by_trying(detokenizer, "[0-9]", [], size)


def test_a_function_allows_tokens() -> None:
    seen: list[list[int]] = []

    def allowed(tokens: IntArray) -> list[int]:
        seen.append(tokens.tolist())
        tokens[:] = 0  # the function gets a copy: this must have no effect
        return [3, 4]

    logits = np.arange(6, dtype=np.float32)
    changed = apply(AllowedTokens(allowed), logits, [5])
    assert changed.tolist() == [-np.inf] * 3 + [3, 4, -np.inf]
    assert seen == [[PROMPT, 5]]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.5], r"must return token ids, got \[1\.5\]"),
        ([[1]], "must return token ids"),
        ([3, 9], "returned token 3 or 9; return ids from 0 to 5"),
        ([-1], "returned token -1 or -1"),
    ],
)
def test_a_function_that_returns_no_token_ids(returned: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        apply(AllowedTokens(lambda tokens: returned), np.zeros(6, np.float32), [])


def test_an_invalid_regular_expression() -> None:
    detokenizer = IncrementalDetokenizer(lambda tokens: "", frozenset())
    with pytest.raises(UsageError, match=r"^'\[a' is not a regular expression: "):
        Pattern("[a", detokenizer, ())


def test_missing_regex_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "regex", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hybrid-deploy\[pattern\]'"):
        Pattern("a", IncrementalDetokenizer(lambda tokens: "", frozenset()), ())


@pytest.mark.parametrize(
    "pattern",
    [
        "a{99999999}",
        "a{" + "9" * 5000 + "}",
        "(((a{90}){90}){90}){90}",
        "(?R)",
        r"\((?:[^()]|(?R))*\)",
        "(a)(?1)",
        "(" * 3000 + ")" * 3000,
        "(?:" * 900,
        "[",
    ],
)
def test_patterns_that_would_fill_the_ram(pattern: str) -> None:
    with pytest.raises(UsageError, match=r"pattern|is not a regular expression"):
        compile_pattern(pattern)


@pytest.mark.parametrize("pattern", [r"\d{4}-\d{2}", r"[a{9}(]{3,}", r"\(\?R", "(a{100}){9}" * 20])
def test_patterns_of_usual_size(pattern: str) -> None:
    compile_pattern(pattern)


def test_a_match_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "_MATCH_SECONDS", 0.1)
    vocabulary = Vocabulary(("a" * 28 + "c", "b"), ())
    pattern = Pattern("a?" * 4000, empty_detokenizer(vocabulary, Path()), ())
    with pytest.raises(UsageError, match="takes too long"):
        pattern(np.zeros(2, np.float32), np.zeros(0, np.int64), 0)

"""Tokens that may come: the rules against trying every token."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import regex

from hybrid_deploy.bundle.manifest import Tokenizer, Vocabulary
from hybrid_deploy.errors import MissingDependencyError, UsageError
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.generation.constraints import AllowedTokens, Pattern
from hybrid_deploy.runtime.generation.incremental_text import (
    IncrementalDetokenizer,
    empty_detokenizer,
)
from tests.fakes.trained_tokenizers import byte_level, metaspace

CHARACTERS = Vocabulary(tuple("_^$abcdefgh0123456789-"), (0, 1, 2))
END, PROMPT = 2, 1
PATTERNS = ("[a-d]{2}-[0-9]+", "a*", "(abc|abd|ha+)[0-9]?", "[^a-h]+", ".*", "(?i)A[B-D]*")


@pytest.fixture(params=["characters", "bytes", "metaspace"])
def begin(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[IncrementalDetokenizer, int]:
    """Returns a reading without tokens, and the size of its vocabulary."""
    if request.param == "characters":
        return empty_detokenizer(CHARACTERS, tmp_path), len(CHARACTERS.tokens)
    made = byte_level() if request.param == "bytes" else metaspace()
    made.save(str(tmp_path / "tokenizer.json"))
    return empty_detokenizer(
        Tokenizer("tokenizer.json", (0, 1, 2)), tmp_path
    ), made.get_vocab_size()


def by_trying(
    begin: IncrementalDetokenizer, pattern: str, tokens: list[int], size: int
) -> set[int]:
    """Returns the tokens that may come, by trying each of them."""
    reading = begin
    for token in tokens:
        reading = reading.after(token)
    compiled, found = regex.compile(pattern), set()
    for token in range(size):
        if token == END:
            fits = compiled.fullmatch(reading.full_text)
        else:
            longer = reading.after(token)
            fits = longer is not reading and compiled.fullmatch(longer.full_text, partial=True)
        if fits:
            found.add(token)
    return found


@pytest.mark.parametrize("pattern", PATTERNS)
def test_all_tokens_that_fit_and_the_likeliest_of_them(
    begin: tuple[IncrementalDetokenizer, int], pattern: str
) -> None:
    reading, size = begin
    rng, steps = np.random.default_rng(4), 0
    for _ in range(6):
        tokens: list[int] = []
        every, few = (Pattern(pattern, reading, (END,), needed) for needed in (None, 3))
        for _ in range(7):
            logits = rng.standard_normal(size).astype(np.float32)
            logits[rng.integers(3, size)] = -np.inf  # taken out by another rule
            wanted = by_trying(reading, pattern, tokens, size)
            allowed = apply(every, logits, tokens)
            expected = np.where(np.isin(np.arange(size), [*wanted]), logits, -np.inf)
            np.testing.assert_array_equal(allowed, expected)
            best = apply(few, logits, tokens)
            three = [t for t in np.argsort(-expected)[:3] if expected[t] > -np.inf]
            assert all(best[t] == logits[t] for t in three)
            assert not (best[expected == -np.inf] > -np.inf).any()
            possible = np.flatnonzero(expected > -np.inf)
            steps += 1
            if not len(possible) or (token := int(rng.choice(possible))) == END:
                break
            tokens.append(token)
    assert steps > 6


def apply(rule: Pattern | AllowedTokens, logits: FloatArray, tokens: list[int]) -> FloatArray:
    changed: FloatArray = logits.copy()
    rule(changed, np.array([PROMPT, *tokens]), 1)
    return changed


def test_the_likeliest_are_found_far_down_too(tmp_path: Path) -> None:
    made = byte_level()
    made.save(str(tmp_path / "tokenizer.json"))
    reading = empty_detokenizer(Tokenizer("tokenizer.json", (0, 1, 2)), tmp_path)
    size, digits = made.get_vocab_size(), made.encode("7", add_special_tokens=False).ids
    logits = np.zeros(size, np.float32)
    logits[digits] = -100
    allowed = apply(Pattern("[0-9]", reading, (END,), 1), logits, [])
    assert int(allowed.argmax()) in by_trying(reading, "[0-9]", [], size)


def test_a_function_says_what_may_come() -> None:
    seen: list[list[int]] = []

    def allowed(tokens: IntArray) -> list[int]:
        seen.append(tokens.tolist())
        tokens[:] = 0  # a copy: it may do with it what it wants
        return [3, 4]

    logits = np.arange(6, dtype=np.float32)
    changed = apply(AllowedTokens(allowed), logits, [5])
    assert changed.tolist() == [-np.inf] * 3 + [3, 4, -np.inf]
    assert seen == [[PROMPT, 5]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.5], r"must return token ids, got \[1\.5\]"),
        ([[1]], "must return token ids"),
        ([3, 9], "returned token 3 or 9; return ids from 0 to 5"),
        ([-1], "returned token -1 or -1"),
    ],
)
def test_a_function_that_gives_no_tokens(given: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        apply(AllowedTokens(lambda tokens: given), np.zeros(6, np.float32), [])


def test_no_regular_expression() -> None:
    reading = IncrementalDetokenizer(lambda tokens: "", frozenset())
    with pytest.raises(UsageError, match=r"^'\[a' is not a regular expression: "):
        Pattern("[a", reading, ())


def test_the_package_that_patterns_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "regex", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hybrid-deploy\[pattern\]'"):
        Pattern("a", IncrementalDetokenizer(lambda tokens: "", frozenset()), ())

"""Templates: words in their place, and the tokens of a text that stands behind a special token."""

from __future__ import annotations

import pytest
import tokenizers

from hybrid_deploy.bundle.prompt_template import PromptTemplate, prompt_template
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.tokenizer import prompt_tokens_of


def metaspace() -> tokenizers.Tokenizer:
    """Splits `the` at the beginning of a text, where it gets a space in front, from a later one."""
    pieces = ["<unk>", "<image>", "▁the", "the", "▁fox", "fox", "▁?", "?"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0)
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens(["<image>"])
    return tokenizer


def test_other_braces_and_places_in_the_words_stay() -> None:
    template = PromptTemplate('{"q": "{prompt}"}')
    assert template.filled("a {prompt} b") == '{"q": "a {prompt} b"}'


def test_text_behind_a_special_token_is_split_as_there() -> None:
    tokenizer = metaspace()
    alone, behind = PromptTemplate("{prompt} fox"), PromptTemplate("{prompt} fox", None, "<image>")
    assert prompt_tokens_of("the", alone, tokenizer) == [2, 4]
    assert prompt_tokens_of("the", behind, tokenizer) == [3, 4]
    whole = tokenizer.encode("<image>the fox", add_special_tokens=False).ids
    assert whole == [1, 3, 4]
    assert prompt_tokens_of("the<image>fox", behind, tokenizer)[1] == 1, "special tokens count"


def test_missing_words() -> None:
    tokenizer = metaspace()
    assert prompt_tokens_of(None, PromptTemplate("{prompt}", "the"), tokenizer) == [2]
    with pytest.raises(UsageError, match="has no default; give them with --prompt-text"):
        prompt_tokens_of(None, PromptTemplate("{prompt}"), tokenizer)


def test_bad_templates() -> None:
    assert prompt_template(None) is None
    for text in ("", "{}", "{prompt}{prompt}"):
        with pytest.raises(UsageError, match=r"has \{prompt\} once"):
            prompt_template(text)

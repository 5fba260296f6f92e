"""Converts token ids to text and text to token ids, with a vocabulary or a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid_deploy.argument_checks import check_text
from hybrid_deploy.bundle.manifest import Tokenizer, Vocabulary
from hybrid_deploy.bundle.prompt_template import PLACE, PromptTemplate
from hybrid_deploy.errors import BundleError, InputError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    import tokenizers

MAX_TEXT_CHARACTERS = 1_000_000
"""Largest number of characters of a text, which is checked before it is split into tokens."""

_REPLACEMENTS = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
"""The replacements of `clean_up_tokenization` in Hugging Face transformers, in its order."""


def text_of(
    tokens: Iterable[int], vocabulary: Vocabulary | Tokenizer, folder: Path | None = None
) -> str:
    """Returns the text of tokens, without the special ones.

    Args:
        tokens: token ids; an id outside a vocabulary becomes "?".
        vocabulary: vocabulary or tokenizer of the bundle.
        folder: folder of the bundle, which holds the tokenizer's file; None with a vocabulary.

    Raises:
        BundleError: the tokenizer's file is missing or damaged.
        MissingDependencyError: `tokenizers` is not installed.
    """
    if isinstance(vocabulary, Vocabulary):
        special, texts = set(vocabulary.special), vocabulary.tokens
        return "".join(
            texts[token] if token < len(texts) else "?" for token in tokens if token not in special
        )
    assert folder is not None, "a tokenizer lies in the bundle's folder"
    skip = set(vocabulary.skip)
    ids = [token for token in tokens if token not in skip]
    text = load_tokenizer(folder / vocabulary.file).decode(ids, skip_special_tokens=False)
    return tidied(text) if vocabulary.tidy else text


def tidied(text: str) -> str:
    """Returns the text without spaces before punctuation and English contractions."""
    for original, replacement in _REPLACEMENTS:
        text = text.replace(original, replacement)
    return text


def tokens_of(
    text: str | None,
    vocabulary: Vocabulary | Tokenizer | None,
    folder: Path,
    template: PromptTemplate | None = None,
) -> list[int]:
    """Returns the token ids of a text, or of the words in a template.

    The tokenizer adds no special tokens.

    Args:
        text: the text, or the words; None takes the template's default.
        vocabulary: tokenizer of the bundle; a vocabulary or None is an error.
        folder: folder of the bundle, which holds the tokenizer's file.
        template: text around the words; None takes the text alone.

    Raises:
        UsageError: the bundle has no tokenizer, or there are no words and no default.
        BundleError: the tokenizer's file is missing or damaged.
        MissingDependencyError: `tokenizers` is not installed.
    """
    if not isinstance(vocabulary, Tokenizer):
        raise UsageError(
            "the bundle has no tokenizer, so a prompt cannot be text; give token ids with --prompt"
        )
    tokenizer = load_tokenizer(folder / vocabulary.file)
    return prompt_tokens_of(text, template or PromptTemplate(PLACE), tokenizer)


def prompt_tokens_of(
    words: str | None,
    template: PromptTemplate,
    tokenizer: tokenizers.Tokenizer,
) -> list[int]:
    """Returns the token ids of a template with words in their place.

    Args:
        words: words of the user; None takes the template's default.
        template: text around the words.
        tokenizer: tokenizer of the bundle.

    Raises:
        UsageError: there are no words and no default.
    """
    text = template.filled(words)
    if not template.preceded_by:
        return token_ids(text, tokenizer)
    whole = token_ids(template.preceded_by + text, tokenizer)
    return whole[len(token_ids(template.preceded_by, tokenizer)) :]


def token_ids(
    text: str, tokenizer: tokenizers.Tokenizer, *, add_special_tokens: bool = False
) -> list[int]:
    """Returns the token ids of a text.

    Args:
        text: the text.
        tokenizer: tokenizer of the bundle.
        add_special_tokens: whether the tokenizer adds its own special tokens.

    Raises:
        InputError: the text has over a million characters.
        UsageError: it has half of a surrogate pair, as from a command line that is not UTF-8.
        BundleError: the tokenizer fails.
    """
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InputError(
            f"a text has {len(text)} characters, at most {MAX_TEXT_CHARACTERS} are taken; split it"
        )
    check_text("a text", text)
    try:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    except Exception as error:  # tokenizers raises nothing more precise
        raise BundleError(f"the bundle's tokenizer fails: {error}; export it again") from error


def load_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a `tokenizer.json`; reads a file again only after it has changed.

    Raises:
        BundleError: the file is missing or damaged.
        MissingDependencyError: `tokenizers` is not installed.
    """
    if not path.is_file():
        raise BundleError(f"{path} is missing; copy the bundle again")
    stat = path.stat()
    return _load(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _load(path: Path, changed_ns: int, size_bytes: int) -> tokenizers.Tokenizer:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingDependencyError("tokenizers", extra="text") from error
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more precise
        raise BundleError(f"{path} is not a tokenizer: {error}; export it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer

"""Converts token ids to text and text to token ids, with a vocabulary or a tokenizer."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from hybrid_deploy.argument_checks import check_text
from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.input_specs import TextInput
from hybrid_deploy.bundle.manifest import Manifest, Tokenizer, Vocabulary
from hybrid_deploy.bundle.prompt_template import PLACE, PromptTemplate
from hybrid_deploy.errors import BundleError, InputError, UsageError
from hybrid_deploy.runtime.tokenizer_file import (
    CheckedTokenizer,
    TokenizerFacts,
    checked,
    parsed,
)
from hybrid_deploy.runtime.tokenizer_trial import check_reads_quickly

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
    tokens: Iterable[int],
    vocabulary: Vocabulary | Tokenizer,
    source: TokenizerSource | None = None,
) -> str:
    """Returns the text of tokens, without the special ones.

    Args:
        tokens: token ids; an id outside a vocabulary becomes "?".
        vocabulary: vocabulary or tokenizer of the bundle.
        source: holds the tokenizer; None with a vocabulary.

    Raises:
        BundleError: the tokenizer's file is missing or damaged.
        MissingDependencyError: `tokenizers` is not installed.
    """
    if isinstance(vocabulary, Vocabulary):
        special, texts = set(vocabulary.special), vocabulary.tokens
        return "".join(
            texts[token] if token < len(texts) else "?" for token in tokens if token not in special
        )
    assert source is not None, "a tokenizer has a file"
    skip = set(vocabulary.skip)
    ids = [token for token in tokens if token not in skip]
    text = load_tokenizer(source, vocabulary.file).decode(ids)
    return tidied(text) if vocabulary.tidy else text


def tidied(text: str) -> str:
    """Returns the text without spaces before punctuation and English contractions."""
    for original, replacement in _REPLACEMENTS:
        text = text.replace(original, replacement)
    return text


def tokens_of(
    text: str | None,
    vocabulary: Vocabulary | Tokenizer | None,
    source: TokenizerSource,
    template: PromptTemplate | None = None,
) -> list[int]:
    """Returns the token ids of a text, or of the words in a template.

    The tokenizer adds no special tokens.

    Args:
        text: the text, or the words; None takes the template's default.
        vocabulary: tokenizer of the bundle; a vocabulary or None is an error.
        source: holds the tokenizer.
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
    tokenizer = load_tokenizer(source, vocabulary.file)
    return prompt_tokens_of(text, template or PromptTemplate(PLACE), tokenizer)


def prompt_tokens_of(
    words: str | None,
    template: PromptTemplate,
    tokenizer: tokenizers.Tokenizer | CheckedTokenizer,
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
    text: str,
    tokenizer: tokenizers.Tokenizer | CheckedTokenizer,
    *,
    add_special_tokens: bool = False,
) -> list[int]:
    """Returns the token ids of a text.

    Args:
        text: the text.
        tokenizer: tokenizer of the bundle, or one of the library that is trusted.
        add_special_tokens: whether the tokenizer adds its own special tokens.

    Raises:
        InputError: the text has over a million characters, or is too long for the tokenizer.
        UsageError: it has half of a surrogate pair, as from a command line that is not UTF-8.
        BundleError: the tokenizer fails.
    """
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InputError(
            f"a text has {len(text)} characters, at most {MAX_TEXT_CHARACTERS} are taken; split it"
        )
    check_text("a text", text)
    return tokenizer.encode(text, add_special_tokens=add_special_tokens).ids


class BundleTokenizers:
    """The tokenizers of one opened bundle; its string is the bundle's folder.

    The verified content of each is read and checked at once, so that a loaded bundle keeps its
    tokenizers whatever happens to their files. It is parsed at its first use.

    Args:
        bundle: the bundle.

    Raises:
        BundleError: a tokenizer's file is missing, has changed, or is none that ends in bounded
            time and RAM.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._folder = bundle.folder
        self._lock = threading.Lock()
        self._files = {
            name: checked(bundle.read_file(name), str(bundle.folder / name))
            for name in _files(bundle.manifest)
        }
        self._facts = {name: file.facts for name, file in self._files.items()}
        self._loaded: dict[str, CheckedTokenizer] = {}

    def __str__(self) -> str:
        return str(self._folder)

    def facts(self, name: str) -> TokenizerFacts:
        """Returns what a tokenizer's file states, by its path relative to the bundle."""
        return self._facts[name]

    def load(self, name: str) -> CheckedTokenizer:
        """Returns the tokenizer of a file, by its path relative to the bundle.

        Raises:
            BundleError: the file is no tokenizer.
            MissingDependencyError: `tokenizers` is not installed.
        """
        if name not in self._loaded:
            with self._lock:
                if name not in self._loaded:
                    check_reads_quickly(self._files[name])
                    self._loaded[name] = parsed(self._files[name])
                    del self._files[name]
        return self._loaded[name]


TokenizerSource: TypeAlias = Path | BundleTokenizers
"""Holds tokenizers: those of an opened bundle, or a folder with files that nobody verified."""


def load_tokenizer(source: TokenizerSource, name: str) -> CheckedTokenizer:
    """Returns the tokenizer of a file, by its path relative to the bundle or folder.

    Raises:
        BundleError: the file is missing or is no tokenizer.
        MissingDependencyError: `tokenizers` is not installed.
    """
    if isinstance(source, BundleTokenizers):
        return source.load(name)
    path = source / name
    if not path.is_file():
        raise BundleError(f"{path} is missing; copy the bundle again")
    status = path.stat()
    return _load_file(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _load_file(path: Path, changed_ns: int, size_bytes: int) -> CheckedTokenizer:
    """Reads a file again only after it has changed."""
    file = checked(path.read_bytes(), str(path))
    check_reads_quickly(file)
    return parsed(file)


def _files(manifest: Manifest) -> set[str]:
    """Returns the tokenizer files that a bundle uses."""
    spec = manifest.preprocess
    inputs = spec if isinstance(spec, tuple) else (spec,)
    files = {part.tokenizer for part in inputs if isinstance(part, TextInput)}
    if isinstance(manifest.vocabulary, Tokenizer):
        files.add(manifest.vocabulary.file)
    return files

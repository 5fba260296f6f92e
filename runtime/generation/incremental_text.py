"""Decodes the tokens of a sequence to text one by one, and finds stop strings in the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hybrid_deploy.bundle.manifest import Tokenizer, Vocabulary
from hybrid_deploy.runtime.tokenizer import TokenizerSource, load_tokenizer, tidied

INCOMPLETE_CHARACTER = "\ufffd"
"""The character that tokenizers decode an incomplete UTF-8 sequence to."""


@dataclass(frozen=True)
class IncrementalDetokenizer:
    """The text of a sequence so far; immutable, so that beams can share it.

    The text of a token depends on the tokens before it: a space at the beginning is dropped, and
    one character may take several tokens. So new tokens are decoded together with the tokens
    before them, and the difference to the text of those is the new text.

    Attributes:
        decode: function that returns the text of token ids.
        skipped: ids of the tokens that are not part of the text.
        text: the final text, which later tokens only append to.
        context: the newest tokens whose text is part of `text`.
        pending: the tokens after `context`, whose text is not final yet.
    """

    decode: Callable[[Sequence[int]], str]
    skipped: frozenset[int]
    text: str = ""
    context: tuple[int, ...] = ()
    pending: tuple[int, ...] = ()

    def after(self, token: int) -> IncrementalDetokenizer:
        """Returns the detokenizer after one more token; itself if the token is skipped."""
        if token in self.skipped:
            return self
        pending = (*self.pending, token)
        before, both = self.decode(self.context), self.decode(self.context + pending)
        if len(both) <= len(before) or both.endswith(INCOMPLETE_CHARACTER):
            return IncrementalDetokenizer(
                self.decode, self.skipped, self.text, self.context, pending
            )
        return IncrementalDetokenizer(
            self.decode, self.skipped, self.text + both[len(before) :], pending
        )

    @property
    def full_text(self) -> str:
        """The final text, and the text of the pending tokens as if no token followed them."""
        if not self.pending:
            return self.text
        return (
            self.text + self.decode(self.context + self.pending)[len(self.decode(self.context)) :]
        )


@lru_cache(maxsize=8)
def empty_detokenizer(
    vocabulary: Vocabulary | Tokenizer, source: TokenizerSource
) -> IncrementalDetokenizer:
    """Returns the detokenizer of a sequence without tokens; the same object for the same source.

    Args:
        vocabulary: vocabulary or tokenizer of the bundle.
        source: holds the tokenizer.

    Raises:
        BundleError: the tokenizer's file is missing or damaged.
        MissingDependencyError: `tokenizers` is not installed.
    """
    if isinstance(vocabulary, Vocabulary):
        texts = vocabulary.tokens
        return IncrementalDetokenizer(
            lambda tokens: "".join(texts[t] if t < len(texts) else "?" for t in tokens),
            frozenset(vocabulary.special),
        )
    decode_all, tidy = load_tokenizer(source, vocabulary.file).decode, vocabulary.tidy

    def decode(tokens: Sequence[int]) -> str:
        text = decode_all(tokens)
        return tidied(text) if tidy else text

    return IncrementalDetokenizer(decode, frozenset(vocabulary.skip))


@dataclass(frozen=True)
class StopStrings:
    """Strings that end a sequence once its text contains one of them.

    Attributes:
        strings: the strings, none of them empty.
        empty: the detokenizer of a sequence without tokens.
    """

    strings: tuple[str, ...]
    empty: IncrementalDetokenizer

    def find(self, text: str, searched: int) -> int | None:
        """Returns the index in `text` where the first stop string begins; None if there is none.

        Args:
            text: the text to search.
            searched: number of characters at its beginning that an earlier search covered.
        """
        indices = (text.find(s, max(0, searched - len(s) + 1)) for s in self.strings)
        return min((index for index in indices if index >= 0), default=None)

    def certain_length(self, text: str) -> int:
        """Returns the length of `text` without an end that may become part of a stop string."""
        for length in range(min(len(text), max(map(len, self.strings)) - 1), 0, -1):
            if any(s.startswith(text[-length:]) for s in self.strings):
                return len(text) - length
        return len(text)

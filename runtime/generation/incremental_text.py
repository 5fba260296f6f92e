"""Text that is read while its tokens come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hybrid_deploy.bundle.manifest import Tokenizer, Vocabulary
from hybrid_deploy.runtime.tokenizer import load_tokenizer, tidied

UNFINISHED = "\ufffd"
"""What a tokenizer gives in place of a character that more bytes are missing of."""


@dataclass(frozen=True)
class IncrementalDetokenizer:
    """The text of a sequence so far; it is never changed, so that beams can share it.

    What a token reads as depends on those before it: a space at the beginning is dropped, a
    character may be spread over several tokens. So the newest tokens are read together with those
    whose text is known, and what is new is the difference.

    Attributes:
        read: gives the text of tokens.
        silent: tokens that are not part of the text.
        text: what is certain.
        known: the newest tokens with certain text.
        waiting: tokens after these, whose text is not certain yet.
    """

    read: Callable[[Sequence[int]], str]
    silent: frozenset[int]
    text: str = ""
    known: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()

    def advanced(self, token: int) -> IncrementalDetokenizer:
        """Returns the reading after one more token."""
        if token in self.silent:
            return self
        waiting = (*self.waiting, token)
        before, whole = self.read(self.known), self.read(self.known + waiting)
        if len(whole) <= len(before) or whole.endswith(UNFINISHED):
            return IncrementalDetokenizer(self.read, self.silent, self.text, self.known, waiting)
        return IncrementalDetokenizer(
            self.read, self.silent, self.text + whole[len(before) :], waiting
        )

    @property
    def whole(self) -> str:
        """The text, and what the waiting tokens read as if nothing follows."""
        if not self.waiting:
            return self.text
        return self.text + self.read(self.known + self.waiting)[len(self.read(self.known)) :]


@lru_cache(maxsize=8)
def begin_reading(vocabulary: Vocabulary | Tokenizer, folder: Path) -> IncrementalDetokenizer:
    """Returns the reading of a sequence without tokens, of one bundle always the same.

    Args:
        vocabulary: what the tokens mean.
        folder: of the bundle, which holds the file of a tokenizer.

    Raises:
        BundleError: the tokenizer's file is missing or damaged.
    """
    if isinstance(vocabulary, Vocabulary):
        known = vocabulary.tokens
        return IncrementalDetokenizer(
            lambda tokens: "".join(known[t] if t < len(known) else "?" for t in tokens),
            frozenset(vocabulary.special),
        )
    decode, tidy = load_tokenizer(folder / vocabulary.file).decode, vocabulary.tidy

    def read(tokens: Sequence[int]) -> str:
        text: str = decode(tokens, skip_special_tokens=False)
        return tidied(text) if tidy else text

    return IncrementalDetokenizer(read, frozenset(vocabulary.skip))


@dataclass(frozen=True)
class StopStrings:
    """Strings that end a sequence once they are part of its text.

    Attributes:
        strings: none of them empty.
        begin: the reading of a sequence without tokens.
    """

    strings: tuple[str, ...]
    begin: IncrementalDetokenizer

    def place(self, text: str, searched: int) -> int | None:
        """Returns where the first of the strings begins.

        Args:
            text: what to search in.
            searched: how much of it was searched before, in vain.
        """
        places = (text.find(s, max(0, searched - len(s) + 1)) for s in self.strings)
        return min((place for place in places if place >= 0), default=None)

    def certain(self, text: str) -> int:
        """Returns how much of a text cannot become part of a stop sequence."""
        for length in range(min(len(text), max(map(len, self.strings)) - 1), 0, -1):
            if any(s.startswith(text[-length:]) for s in self.strings):
                return len(text) - length
        return len(text)

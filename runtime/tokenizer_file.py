"""Checks a `tokenizer.json`, and calls the tokenizers library so that no file ends the process.

The library trusts its files: steps that replace a letter by two fill all RAM, a table with a wrong
size aborts the process, and a regular expression may search for hours. So the sizes are checked
before the library reads a file, and `tokenizer_calls` waits for calls that may take long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from hybrid_deploy.errors import BundleError, InputError, MissingDependencyError
from hybrid_deploy.runtime.deadline import deadline
from hybrid_deploy.runtime.tokenizer_calls import in_time, without_panic
from hybrid_deploy.runtime.tokenizer_steps import (
    check_limit,
    cuts_tokens,
    growth_of,
    has_regex,
    objects_of,
    read_once,
    size_of,
)

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

MAX_FILE_BYTES = 256 << 20
"""Largest size of a file; one of 260,000 tokens takes 35 MB."""

MAX_GROWTH = 100_000
"""Largest number of bytes that the steps make of one byte; known tokenizers make up to 3,000."""

MAX_TEXT_BYTES = 8 << 20
"""Largest size of a text after the steps before the model; a token takes up to 160 bytes of RAM."""

MAX_ADDED_BYTES = 64 << 20
"""Largest size of all added tokens after the normalizer, which the library applies to them."""

MAX_AFFIX_CHARACTERS = 100
"""Longest mark of a part of a word, which is put to every part; known ones have up to 4."""

MAX_TOKEN_CHARACTERS = 100_000
"""Longest text of one token, as it is decoded; known tokenizers have up to 1,000."""

MAX_WORD_CHARACTERS = 1_000
"""Largest word of WordPiece, which takes the square of its length in time; the usual one is 100."""

MAX_ADDED_TOKENS = 1_000
"""Largest number of tokens that the post-processor adds to a text; known ones add up to 10."""

_QUICK = 1_000_000
"""Bytes of a text, times the tries at each, that the library surely splits in under 0.1 s."""

_MEASURED_BYTES = 32 << 20
"""Bytes of a text, times the steps of the normalizer, that the library normalizes in about 2 s."""

_QUICKLY_READ_BYTES = 4 << 20
"""Bytes of the added tokens, times those steps, with which the library surely reads a file soon."""

_WORD_PIECE_CHARACTERS = 100
"""Longest word of WordPiece where a file does not say, and letters that are hashed in one try."""

_SHORT_BYTES = 1_000
"""Longest text that a known regular expression surely splits in under 0.1 s."""

_JOINING_S = 10.0
"""Longest time for the text of tokens, which takes milliseconds."""

_FAILS = "the bundle's tokenizer fails"


class _AddedToken(msgspec.Struct):
    content: str
    id: int = 0
    normalized: bool = True


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]] = {}
    type: str | None = None
    max_input_chars_per_word: int = 0
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None

    @property
    def ids(self) -> set[int]:
        """Ids of the tokens; those of a list count from 0."""
        if isinstance(self.vocab, dict):
            return set(self.vocab.values())
        return set(range(len(self.vocab)))

    @property
    def longest(self) -> int:
        """Length of the longest token."""
        if isinstance(self.vocab, dict):
            return max(map(len, self.vocab), default=0)
        return max((len(text) for text, _ in self.vocab), default=0)

    @property
    def longest_affix(self) -> int:
        """Length of the longest mark of a part of a word."""
        return max(len(self.continuing_subword_prefix or ""), len(self.end_of_word_suffix or ""))

    @property
    def tries(self) -> float:
        """Number of letters that are read to split off one byte, without the added tokens."""
        if self.type != "WordPiece":
            return self.longest
        word = self.max_input_chars_per_word or _WORD_PIECE_CHARACTERS
        return word * (1 + (word + self.longest_affix) / _WORD_PIECE_CHARACTERS)


class _SpecialToken(msgspec.Struct):
    ids: list[int]


class _Template(msgspec.Struct):
    """A post-processor that puts special tokens around a text."""

    single: list[dict[str, dict[str, Any]]]
    special_tokens: dict[str, _SpecialToken]


class _File(msgspec.Struct):
    """A file without its padding and truncation."""

    model: msgspec.Raw
    version: str = "1.0"
    added_tokens: list[dict[str, Any]] = []
    normalizer: Any = None
    pre_tokenizer: Any = None
    post_processor: Any = None
    decoder: Any = None


@dataclass(frozen=True)
class TokenizerFacts:
    """What a tokenizer file states about itself.

    Attributes:
        ids: ids of the tokens that have a text.
        growth: largest number of bytes that the steps before the model make of one byte.
        split_growth: largest number that the steps after the normalizer make of one byte.
        measured_bytes: longest text that is normalized to know its size after the normalizer; 0 if
            that may take long.
        tries: largest number of letters that are read to split off one byte of a text: the length
            of the longest token, or the letters of all tries for a word; infinite for a regular
            expression.
        reads_quickly: whether the library surely reads the file in a second.
        joins_quickly: whether the time for tokens is in proportion to their number.
        may_panic: whether a step of the decoder panics over some tokens.
    """

    ids: frozenset[int]
    growth: float
    split_growth: float
    measured_bytes: float
    tries: float
    reads_quickly: bool
    joins_quickly: bool
    may_panic: bool


@dataclass(frozen=True)
class CheckedTokenizer:
    """A tokenizer of the library whose calls end in bounded RAM, and fail with one line.

    Attributes:
        library: tokenizer of the library.
        facts: what its file states.
    """

    library: Tokenizer
    facts: TokenizerFacts

    def encode(self, text: str, *, add_special_tokens: bool) -> Encoding:
        """Returns the tokens of a text.

        Raises:
            InputError: the text is too long for the steps of this tokenizer.
            BundleError: the library failed.
            StoppedError: the tokens were not known at the deadline, see `Until`.
        """
        size = len(text.encode())
        if size * self.facts.growth > MAX_TEXT_BYTES:
            self._check_size(text, size)
        if size * self.facts.growth * self.facts.tries <= _QUICK:
            return without_panic(
                lambda: self.library.encode(text, add_special_tokens=add_special_tokens), _FAILS
            )
        call = partial(self.library.encode_batch, [text], add_special_tokens=add_special_tokens)
        # without a deadline, a thread is worth its time only for texts that may take long
        is_short = deadline() is None and size * self.facts.growth <= _SHORT_BYTES
        (encoding,) = without_panic(call, _FAILS) if is_short else in_time(call, _FAILS)
        return encoding

    def _check_size(self, text: str, size: int) -> None:
        """Checks the size of a text after the steps, which may be too large."""
        grown = size * self.facts.growth
        normalizer = self.library.normalizer
        if normalizer is not None and size <= self.facts.measured_bytes:
            normalized = without_panic(lambda: normalizer.normalize_str(text), _FAILS)
            grown = len(normalized.encode("utf-8", "surrogatepass")) * self.facts.split_growth
        if grown > MAX_TEXT_BYTES:
            raise InputError(
                f"a text of {size} bytes is too long for this tokenizer, which may make "
                f"{grown:.0f} bytes of it, at most {MAX_TEXT_BYTES} are taken; split it"
            )

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, with the special ones.

        Raises:
            BundleError: the library failed, or searches for long.
        """
        if self.facts.joins_quickly:
            return without_panic(
                lambda: self.library.decode(tokens, skip_special_tokens=False),
                _FAILS,
                silently=self.facts.may_panic,
            )
        (text,) = in_time(
            lambda: self.library.decode_batch([tokens], skip_special_tokens=False),
            _FAILS,
            longest_s=_JOINING_S,
        )
        return text


@dataclass(frozen=True)
class CheckedFile:
    """A tokenizer file that is safe to read.

    Attributes:
        content: JSON for the library, of what was checked alone: each key stands in it once.
        origin: name of the file, for messages.
        facts: what the file states.
    """

    content: bytes
    origin: str
    facts: TokenizerFacts


def checked(content: bytes, origin: str) -> CheckedFile:
    """Checks the content of a `tokenizer.json`.

    Args:
        content: content of the file.
        origin: name of the file, for messages.

    Raises:
        BundleError: the content is no tokenizer, or takes unbounded time or RAM.
    """
    try:
        check_limit("bytes", len(content), MAX_FILE_BYTES)
        file = msgspec.json.decode(content, type=_File)
        return CheckedFile(msgspec.json.encode(file), origin, _facts(file))
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise BundleError(f"{origin} is not a tokenizer: {error}; export it again") from error


def parsed(file: CheckedFile) -> CheckedTokenizer:
    """Returns the tokenizer in a checked file; it neither pads nor truncates.

    Raises:
        BundleError: the library refuses the content.
        MissingDependencyError: `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError("tokenizers", extra="text") from error
    failure = f"{file.origin} is not a tokenizer"
    library = without_panic(lambda: Tokenizer.from_buffer(file.content), failure)
    return CheckedTokenizer(library, file.facts)


def _facts(file: _File) -> TokenizerFacts:
    """Returns what a file states; checks its sizes."""
    model = msgspec.json.decode(file.model, type=_Model)
    steps = objects_of(file.normalizer)
    normalized, split = growth_of(steps), growth_of(objects_of(file.pre_tokenizer))
    check_limit("bytes are made of one", normalized * split, MAX_GROWTH)
    added = msgspec.convert(file.added_tokens, list[_AddedToken])
    longest = max(model.longest, *(len(token.content) for token in added), 0)
    decoded = longest * growth_of(objects_of(file.decoder))
    check_limit("characters of one decoded token", decoded, MAX_TOKEN_CHARACTERS)
    check_limit("characters of a word", model.max_input_chars_per_word, MAX_WORD_CHARACTERS)
    check_limit("characters mark a part of a word", model.longest_affix, MAX_AFFIX_CHARACTERS)
    check_limit("tokens are added to a text", _added_tokens(file.post_processor), MAX_ADDED_TOKENS)
    added_bytes = normalized * sum(size_of(token.content) for token in added if token.normalized)
    check_limit("bytes of added tokens", added_bytes, MAX_ADDED_BYTES)
    searches = has_regex(file.normalizer) or has_regex(file.pre_tokenizer)
    is_measured = not has_regex(file.normalizer)
    return TokenizerFacts(
        ids=frozenset(model.ids.union(token.id for token in added)),
        growth=normalized * split,
        split_growth=split,
        measured_bytes=_MEASURED_BYTES / normalized / max(1, len(steps)) if is_measured else 0,
        tries=math.inf if searches else max(model.tries, longest),
        reads_quickly=not added_bytes
        or (read_once(steps) and added_bytes * len(steps) <= _QUICKLY_READ_BYTES),
        joins_quickly=not has_regex(file.decoder),
        may_panic=has_regex(file.decoder) or cuts_tokens(file.decoder),
    )


def _added_tokens(step: Any) -> int:
    """Returns how many tokens a post-processor adds to a text, which it may not repeat.

    Only the forms that the library itself writes are taken.
    """
    if step is None:
        return 0
    kind = step.get("type") if isinstance(step, dict) else None
    if kind == "Sequence":
        return sum(map(_added_tokens, msgspec.convert(step.get("processors"), list[Any])))
    if kind in ("BertProcessing", "RobertaProcessing"):
        return 2
    if kind == "ByteLevel":
        return 0
    if kind != "TemplateProcessing":
        raise ValueError(f"its post_processor is of an unknown type, {str(kind)[:40]!r}")
    template = msgspec.convert(step, _Template)
    added = [piece["SpecialToken"] for piece in template.single if "SpecialToken" in piece]
    check_limit("places of a text in its template", len(template.single) - len(added), 1)
    names = [str(token.get("id")) for token in added]
    if unknown := [name for name in names if name not in template.special_tokens]:
        raise ValueError(f"its post_processor has no ids of {unknown[0][:40]!r}")
    return sum(len(template.special_tokens[name].ids) for name in names)

"""Checks a `tokenizer.json`, and calls the tokenizers library so that no file ends the process.

The library trusts its files: steps that replace a letter by two fill all RAM, a table with a wrong
size aborts the process, and a regular expression may search for hours. So the sizes are checked
before the library reads a file, and `tokenizer_calls` waits for calls that may take long.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from hybrid_deploy.errors import BundleError, InputError, MissingDependencyError
from hybrid_deploy.runtime.deadline import deadline
from hybrid_deploy.runtime.tokenizer_calls import in_time, without_panic

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

MAX_FILE_BYTES = 256 << 20
"""Largest size of a file; one of 260,000 tokens takes 35 MB."""

MAX_STEPS = 256
"""Largest number of JSON objects that describe the steps; known tokenizers have up to 30."""

MAX_GROWTH = 10_000
"""Largest number of bytes that the steps make of one byte; known tokenizers make up to 70."""

MAX_TEXT_BYTES = 64 << 20
"""Largest size of a text after the steps before the model."""

MAX_TOKEN_CHARACTERS = 100_000
"""Longest text of one token, as it is decoded; known tokenizers have up to 1,000."""

MAX_WORD_CHARACTERS = 1_000
"""Largest word of WordPiece, which takes the square of its length in time; the usual one is 100."""

MAX_ADDED_TOKENS = 1_000
"""Largest number of tokens that the post-processor adds to a text; known ones add up to 10."""

_QUICK = 1_000_000
"""Bytes of a text, times the tries at each, that the library surely splits in under 0.1 s."""

_SHORT_BYTES = 1_000
"""Longest text that a known regular expression surely splits in under 0.1 s."""

_JOINING_S = 10.0
"""Longest time for the text of tokens, which takes milliseconds."""

_NEVER_EMPTY = re.compile(r"(\\[swdSWD]|\[[^\[\]\\&]+\]|[ \w])(\+|\{[1-9]\d*,?\d*\})?")
"""Regular expressions of one class of characters, which match at least one of them."""

_FAILS = "the bundle's tokenizer fails"


class _AddedToken(msgspec.Struct):
    content: str
    id: int = 0


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]] = {}
    max_input_chars_per_word: int = 0

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
        tries: largest number of letters that are read to split off one byte of a text: the length
            of the longest token, infinite for a regular expression.
        joins_quickly: whether the time for tokens is in proportion to their number.
        may_panic: whether a step of the decoder panics over some tokens.
    """

    ids: frozenset[int]
    growth: float
    tries: float
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
        if (size := len(text.encode())) * self.facts.growth > MAX_TEXT_BYTES:
            raise InputError(
                f"a text of {size} bytes is too long for this tokenizer, which takes up to "
                f"{int(MAX_TEXT_BYTES / self.facts.growth)}; split it"
            )
        if size * self.facts.growth * self.facts.tries <= _QUICK:
            return without_panic(
                lambda: self.library.encode(text, add_special_tokens=add_special_tokens), _FAILS
            )
        call = partial(self.library.encode_batch, [text], add_special_tokens=add_special_tokens)
        # without a deadline, a thread is worth its time only for texts that may take long
        is_short = deadline() is None and size * self.facts.growth <= _SHORT_BYTES
        (encoding,) = without_panic(call, _FAILS) if is_short else in_time(call, _FAILS)
        return encoding

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
        _check_limit("bytes", len(content), MAX_FILE_BYTES)
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
    before = _growth(_objects(file.normalizer)) * _growth(_objects(file.pre_tokenizer))
    _check_limit("bytes are made of one", before, MAX_GROWTH)
    added = msgspec.convert(file.added_tokens, list[_AddedToken])
    longest = max(model.longest, *(len(token.content) for token in added), 0)
    decoded = longest * _growth(_objects(file.decoder))
    _check_limit("characters of one decoded token", decoded, MAX_TOKEN_CHARACTERS)
    _check_limit("characters of a word", model.max_input_chars_per_word, MAX_WORD_CHARACTERS)
    _check_limit("tokens are added to a text", _added_tokens(file.post_processor), MAX_ADDED_TOKENS)
    searches = _has_regex(file.normalizer) or _has_regex(file.pre_tokenizer)
    return TokenizerFacts(
        ids=frozenset(model.ids.union(token.id for token in added)),
        growth=before,
        tries=math.inf if searches else longest,
        joins_quickly=not _has_regex(file.decoder),
        may_panic=_has_regex(file.decoder) or _cuts_tokens(file.decoder),
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
    _check_limit("places of a text in its template", len(template.single) - len(added), 1)
    names = [str(token.get("id")) for token in added]
    if unknown := [name for name in names if name not in template.special_tokens]:
        raise ValueError(f"its post_processor has no ids of {unknown[0][:40]!r}")
    return sum(len(template.special_tokens[name].ids) for name in names)


def _check_limit(what: str, value: float, largest: float) -> None:
    if value > largest:
        raise ValueError(f"{value:.12g} {what}, at most {largest:.12g} are taken")


def _objects(steps: Any) -> list[dict[str, Any]]:
    """Returns all JSON objects in the description of steps; older files nest them otherwise."""
    waiting, objects = [steps], []
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            objects.append(value)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    _check_limit("objects describe its steps", len(objects), MAX_STEPS)
    return objects


def _has_regex(steps: Any) -> bool:
    """Returns whether steps search a regular expression of the file."""
    return any("Regex" in step for step in _objects(steps))


def _cuts_tokens(decoder: Any) -> bool:
    """Returns whether a decoder cuts the ends of tokens, which panics if they are too short."""
    return any(step.get("stop") for step in _objects(decoder))


def _growth(steps: list[dict[str, Any]]) -> float:
    """Returns the largest number of bytes that steps make of one byte."""
    product = 1.0
    for step in steps:
        product = min(product * max(1.0, _growth_of_one(step)), 1e30)
    return product


def _growth_of_one(step: dict[str, Any]) -> float:
    if "precompiled_charsmap" in step:
        return _charsmap_growth(step["precompiled_charsmap"])
    if "content" in step and "pattern" in step:
        return _replacement_growth(step["pattern"], _size(step["content"]))
    if "prepend" in step:
        return 1 + _size(step["prepend"])
    if step.get("type") in ("BPEDecoder", "CTC", "WordPiece"):
        return 2  # they put a space into the text, before every letter if their own mark is ""
    return 1


def _replacement_growth(pattern: Any, content_bytes: int) -> float:
    """Returns the growth of a step that replaces a text, or what a regular expression matches."""
    if isinstance(pattern, dict) and "Regex" in pattern:
        never_empty = _NEVER_EMPTY.fullmatch(str(pattern["Regex"]))
        return content_bytes + (0 if never_empty else 1)
    replaced = pattern["String"] if isinstance(pattern, dict) and "String" in pattern else pattern
    return content_bytes / size if (size := _size(replaced)) else content_bytes + 1


def _size(text: Any) -> int:
    """Returns the bytes of a text; the library refuses what is no text."""
    return len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0


def _charsmap_growth(charsmap: Any) -> float:
    """Returns the size of the longest text in a table of replacements, which is checked.

    SentencePiece writes the size of a trie as four bytes, the trie, and texts that end with a zero.
    """
    if charsmap is None:
        return 1
    try:
        table = base64.b64decode(charsmap, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise ValueError("its precompiled_charsmap is not base64") from None
    trie_bytes = int.from_bytes(table[:4], "little")
    if len(table) < 4 or trie_bytes % 4 or trie_bytes > len(table) - 4:
        raise ValueError("its precompiled_charsmap is no table of characters")
    return max(map(len, table[4 + trie_bytes :].split(b"\0")))

"""The steps of a `tokenizer.json`: how much longer they make a text, and what they search.

A step is a JSON object: one of the normalizer, of the pre-tokenizer or of the decoder.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

MAX_STEPS = 256
"""Largest number of JSON objects that describe the steps; known tokenizers have up to 30."""

_NEVER_EMPTY = re.compile(r"(\\[swdSWD]|\[[^\[\]\\&]+\]|[ \w])(\+|\{[1-9]\d*,?\d*\})?")
"""Regular expressions of one class of characters, which match at least one of them."""

_READ_ONCE = re.compile(r"(\\[swdSWD]|\[([^\[\]\\&]|\\\W)+\]|[ \w])(\+|\{\d{1,2},?\d{0,2}\})?")
"""Regular expressions of one class of characters, which read a text about once."""

_STABLE_GROWTH = {
    "NFC": 3.0, "NFD": 3.0, "NFKC": 11.0, "NFKD": 11.0, "Lowercase": 1.5, "Nmt": 1.0,
}  # fmt: skip
"""Growth of normalizers that do not change their own results (UAX #15, section 12)."""

_GROWTH = {
    "BertNormalizer": 8.0,  # spaces around a Chinese character, decomposed, in small letters
    "BPEDecoder": 2.0,  # these put a space before a token, or every letter if their mark is ""
    "CTC": 2.0,
    "WordPiece": 2.0,
}
"""Growth of steps whose fields do not matter for it."""


def check_limit(what: str, value: float, largest: float) -> None:
    """Checks a number that a file states.

    Raises:
        ValueError: it is larger than what is taken.
    """
    if value > largest:
        raise ValueError(f"{value:.12g} {what}, at most {largest:.12g} are taken")


def objects_of(steps: Any) -> list[dict[str, Any]]:
    """Returns all JSON objects in the description of steps; older files nest them otherwise."""
    waiting, objects = [steps], []
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            objects.append(value)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    check_limit("objects describe its steps", len(objects), MAX_STEPS)
    return objects


def has_regex(steps: Any) -> bool:
    """Returns whether steps search a regular expression of the file."""
    return any("Regex" in step for step in objects_of(steps))


def read_once(steps: list[dict[str, Any]]) -> bool:
    """Returns whether the regular expressions of steps read a text about once."""
    return all(_READ_ONCE.fullmatch(str(step["Regex"])) for step in steps if "Regex" in step)


def cuts_tokens(decoder: Any) -> bool:
    """Returns whether a decoder cuts the ends of tokens, which panics if they are too short."""
    return any(step.get("stop") for step in objects_of(decoder))


def growth_of(steps: list[dict[str, Any]]) -> float:
    """Returns the largest number of bytes that steps make of one byte."""
    product, others = 1.0, 0
    for step in steps:
        growth = _growth_of_one(step)
        others += growth != 1
        product = min(product * max(1.0, growth), 1e30)
    kinds = [step.get("type") for step in steps]
    for kind, growth in _STABLE_GROWTH.items():  # the next ones change what others have made
        product = min(product * growth ** min(kinds.count(kind), others + 1), 1e30)
    return product


def _growth_of_one(step: dict[str, Any]) -> float:
    """Returns the growth of a step; 1 for the steps of `_STABLE_GROWTH`."""
    if "precompiled_charsmap" in step:
        return _charsmap_growth(step["precompiled_charsmap"])
    if "content" in step and "pattern" in step:
        return _replacement_growth(step["pattern"], size_of(step["content"]))
    if "prepend" in step:
        return 1 + size_of(step["prepend"])
    kind = str(step.get("type"))
    if kind == "ByteLevel":  # a letter of two bytes for a byte, and one for a space before
        return 4 if step.get("add_prefix_space", True) else 2
    if kind == "Metaspace":  # the mark replaces a space, or is put before a word
        return 1 + size_of(step.get("replacement"))
    return _GROWTH.get(kind, 1)


def _replacement_growth(pattern: Any, content_bytes: int) -> float:
    """Returns the growth of a step that replaces a text, or what a regular expression matches."""
    if isinstance(pattern, dict) and "Regex" in pattern:
        never_empty = _NEVER_EMPTY.fullmatch(str(pattern["Regex"]))
        return content_bytes + (0 if never_empty else 1)
    replaced = pattern["String"] if isinstance(pattern, dict) and "String" in pattern else pattern
    return content_bytes / size if (size := size_of(replaced)) else content_bytes + 1


def size_of(text: Any) -> int:
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

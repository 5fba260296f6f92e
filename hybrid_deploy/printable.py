"""Text that is safe to print: what would command a terminal, or turn its lines around, is escaped.

A bundle's vocabulary, names and paths come from strangers, and so do the names of input files.
"""

from __future__ import annotations

import re

LINES = "\n\t"
"""Characters that a text of several lines may keep."""

_TAB = "\t"

_HIDDEN = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # control characters, C1 too: U+009B begins a command as ESC [ does
    "\u2028\u2029"  # separators of lines and paragraphs
    "\u202a-\u202e\u2066-\u2069"  # bidirectional embeddings, overrides and isolates
    "\U000e0000-\U000e007f"  # invisible tags
    "\ud800-\udfff"  # bytes of a name that is not UTF-8
    "]"
)


def printable(text: str, keep: str = "") -> str:
    r"""Returns a text with escapes such as `\x1b` in place of characters that a terminal obeys.

    Args:
        text: any text.
        keep: such characters that stay, as LINES.
    """
    return _HIDDEN.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), text)


def one_line(text: str) -> str:
    r"""Returns a printable text without line breaks: each is written as the escape `\n`."""
    return printable(text, _TAB)


def printable_json(text: str) -> str:
    """Returns JSON of the same value, in which such characters are written as escapes.

    Args:
        text: a JSON document; outside of its strings it has line breaks and tabs alone.
    """
    return _HIDDEN.sub(lambda match: match[0] if match[0] in LINES else _in_json(match[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _in_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))

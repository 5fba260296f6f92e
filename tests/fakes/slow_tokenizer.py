"""A tokenizer whose regular expression takes the square of a text's length in time."""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks.reliability.tiny_bundle import manifest_of, record_of, sealed
from tests.fakes.plain_tokenizer import plain_tokenizer

SLOW_STEP = {
    "type": "Split",
    "pattern": {"Regex": r"\w*[^\w\s]"},
    "behavior": "Isolated",
    "invert": False,
}
"""A step before the model that searches 100,000 letters for a minute or more."""


def make_slow(bundle: Path) -> None:
    """Gives a bundle such a tokenizer, and seals the bundle again."""
    words = {word: index for index, word in enumerate("_^$abcdefgh")}  # of the tiny model
    tokenizer = plain_tokenizer(words) | {"pre_tokenizer": SLOW_STEP}
    content = json.dumps(tokenizer).encode()
    manifest = manifest_of(bundle)
    manifest["files"]["tokenizer.json"] = record_of(content)
    manifest["vocabulary"] = {"type": "tokenizer", "file": "tokenizer.json"}
    (bundle / "tokenizer.json").write_bytes(content)
    (bundle / "manifest.json").write_bytes(sealed(json.dumps(manifest).encode()))

"""The content of a tokenizer.json that does nothing to a text but to look up its words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def plain_tokenizer(vocabulary: Mapping[str, int]) -> dict[str, Any]:
    """Returns a tokenizer of words, of which `a` stands for all unknown ones."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": dict(vocabulary), "unk_token": "a"},
    }

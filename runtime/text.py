"""From token ids to text."""

from __future__ import annotations

from collections.abc import Iterable

from hybrid_deploy.manifest import Vocabulary


def text_of(tokens: Iterable[int], vocabulary: Vocabulary) -> str:
    """Joins the text of tokens, special ones left out; an id outside the vocabulary reads as ?."""
    special, known = set(vocabulary.special), vocabulary.tokens
    return "".join(
        known[token] if token < len(known) else "?" for token in tokens if token not in special
    )

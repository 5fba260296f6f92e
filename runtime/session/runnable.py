"""Checks that a manifest fits the graphs of the variant that is to be run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import Tokenizer, Vocabulary
from hybrid_deploy.contract import (
    LOGITS,
    GraphRole,
    cache_of,
    is_memory,
    is_next_cache,
    is_recurrent,
)
from hybrid_deploy.errors import BundleError
from hybrid_deploy.runtime.tokenizer import BundleTokenizers

_POSITION_AXIS = -2

_LARGEST_SHARE = 4
"""Largest number of tokens that a model chooses from for each one that has a text."""


def check_runnable(bundle: Bundle, variant: str, texts: TokenTexts) -> None:
    """Checks the capacity and the vocabulary of a bundle against the step graph of a variant.

    A model may choose from more tokens than its vocabulary has: heads are padded to a multiple of
    8, 64 or 128, and a small tokenizer may stand beside a large head. A result says when it has
    such a token. A vocabulary without three of four tokens belongs to another model.

    Raises:
        BundleError: the caches have fewer positions than the capacity, or fewer than a quarter of
            the tokens that the model chooses from have a text.
    """
    for problem in (*_short_caches(bundle, variant), *_missing_texts(bundle, variant, texts)):
        raise BundleError(f"{bundle.folder} makes no sense: {problem}; export it again")


@dataclass(frozen=True)
class TokenTexts:
    """The tokens that have a text.

    Attributes:
        ids: their ids; None for a bundle without a vocabulary.
        first_timestamp: id from which on all tokens are timestamps, which need no text; None for a
            model without timestamps.
    """

    ids: frozenset[int] | None
    first_timestamp: int | None = None

    @classmethod
    def of(cls, bundle: Bundle, tokenizers: BundleTokenizers) -> TokenTexts:
        """Returns the tokens of a bundle that have a text."""
        vocabulary, speech = bundle.manifest.vocabulary, bundle.manifest.speech
        knows_times = speech is not None and speech.no_timestamps is not None
        first = speech.first_timestamp if speech is not None and knows_times else None
        if isinstance(vocabulary, Vocabulary):
            return cls(frozenset(range(len(vocabulary.tokens))), first)
        if isinstance(vocabulary, Tokenizer):
            return cls(tokenizers.facts(vocabulary.file).ids, first)
        return cls(None)

    def missing(self, tokens: tuple[int, ...]) -> tuple[str, ...]:
        """Returns a remark if some of the tokens of a result have no text."""
        if self.first_timestamp is not None:
            tokens = tuple(token for token in tokens if token < self.first_timestamp)
        lacking = [] if self.ids is None else [t for t in tokens if t not in self.ids]
        if not lacking:
            return ()
        return (f"token {lacking[0]} has no text in the bundle's vocabulary",)


def _short_caches(bundle: Bundle, variant: str) -> Iterator[str]:
    step, capacity = bundle.graph(variant, GraphRole.STEP), bundle.manifest.capacity
    caches = {cache_of(tensor.name) for tensor in step.outputs if is_next_cache(tensor.name)}
    for tensor in step.inputs:
        if tensor.name not in caches or is_memory(tensor.name) or is_recurrent(tensor.name):
            continue
        positions = tensor.shape[_POSITION_AXIS] if len(tensor.shape) > 1 else None
        if isinstance(positions, int) and positions < capacity:
            yield f"its capacity is {capacity} tokens, {tensor.name} has {positions} positions"


def _missing_texts(bundle: Bundle, variant: str, texts: TokenTexts) -> Iterator[str]:
    outputs = bundle.graph(variant, GraphRole.STEP).outputs
    size = next((tensor.shape[-1] for tensor in outputs if tensor.name == LOGITS), None)
    if texts.ids is None or not isinstance(size, int):
        return
    known = sum(token < size for token in texts.ids)
    if _LARGEST_SHARE * known < size:
        yield f"its vocabulary has {known} of the {size} tokens that the model chooses from"

"""Prefill for decoders without a prefill graph: the step graph decodes prompts token by token."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray


def prefill_by_steps(
    step: Callable[[IntArray, IntArray], FloatArray],
    undo_step: Callable[[IntArray], None],
    tokens: IntArray,
    position: IntArray,
    last: IntArray,
    heads: Collection[NDArray[Any]] = (),
) -> FloatArray:
    """Decodes prompts of unequal lengths.

    The recurrent state of a sequence is the one after its last real token: the steps over its
    padding are undone.

    Args:
        step: decodes one token per sequence, `(token, position) -> logits`.
        undo_step: restores the recurrent state from before the newest step, for the sequences with
            these indexes.
        tokens: prompts, (batch, length) int64, padded on the right.
        position: position of the first token of each sequence, (batch,) int64.
        last: index of each sequence's last real token, (batch,) int64.
        heads: outputs of further heads, (batch, width) each, which every step overwrites; they get
            the values after each sequence's last real token.

    Returns:
        Logits after each sequence's last real token, (batch, vocabulary) float32; a copy that the
        caller owns.
    """
    logits: FloatArray = step(tokens[:, 0], position).copy()
    kept = [head.copy() for head in heads]
    for index in range(1, tokens.shape[1]):
        newest, ended = step(tokens[:, index], position + index), last < index
        for old, new in zip((logits, *kept), (newest, *heads), strict=True):
            old[~ended] = new[~ended]
        undo_step(np.flatnonzero(ended))
    for head, old in zip(heads, kept, strict=True):
        head[:] = old
    return logits

"""Prompts for decoders without a prefill graph: fed to the step graph token by token."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray


def prefill_by_steps(
    step: Callable[[IntArray, IntArray], FloatArray],
    keep: Callable[[IntArray], None],
    tokens: IntArray,
    position: IntArray,
    last: IntArray,
) -> FloatArray:
    """Decodes prompts of unequal lengths; what a sequence carries stops at its last real token.

    Args:
        step: decodes one token per sequence, `(token, position) -> logits`.
        keep: takes back the newest step for the sequences of these indexes.
        tokens: (batch, length), padded on the right.
        position: (batch,), of the first token.
        last: (batch,), index of each sequence's last real token.

    Returns:
        logits (batch, vocabulary) after the last real token.
    """
    logits: FloatArray = step(tokens[:, 0], position).copy()
    for index in range(1, tokens.shape[1]):
        newest, ended = step(tokens[:, index], position + index), last < index
        logits[~ended] = newest[~ended]
        keep(np.flatnonzero(ended))
    return logits

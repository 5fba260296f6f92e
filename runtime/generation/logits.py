"""The logits of a batch: from the prompt, checked, as probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.protocol import (
    ApproximateLogits,
    Decoding,
    FloatArray,
    IntArray,
)


def prompt_logits(
    decoding: Decoding, prompts: Sequence[Sequence[int]], *, rough: bool = False
) -> FloatArray:
    """Returns the logits (batch, vocabulary) of the first new token of every sequence.

    Args:
        decoding: a started batch.
        prompts: for each sequence its first tokens, at least one.
        rough: whether logits within their margin are enough; the decoding is RoughFirst then.
    """
    step, prefill = decoding.step, decoding.prefill
    if rough:
        assert isinstance(decoding, ApproximateLogits)
        step, prefill = decoding.step_approximate, decoding.prefill_approximate
    longest = max(len(prompt) for prompt in prompts)
    position = np.zeros(len(prompts), np.int64)
    if longest == 1:
        return step(np.array([prompt[0] for prompt in prompts], np.int64), position)
    tokens = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    last: IntArray = np.array([len(prompt) - 1 for prompt in prompts], np.int64)
    return prefill(tokens, position, last)


def check_largest(value: float, where: str) -> None:
    """Checks the largest logit.

    Raises:
        BackendError: it is NaN or infinite.
    """
    if value == -np.inf:
        raise BackendError(
            f"the rules leave no token to {where}; suppress fewer, or allow more tokens or texts"
        )
    if not -np.inf < value < np.inf:
        raise BackendError(
            f"the logits of {where} are not finite; the variant overflows on this input, use one "
            "of higher precision"
        )


def log_probabilities(logits: FloatArray, values: FloatArray) -> FloatArray:
    """Returns the natural logarithms of the probabilities of chosen tokens.

    Args:
        logits: (rows, vocabulary).
        values: (rows,), those of the chosen tokens.
    """
    with np.errstate(invalid="ignore"):  # of sequences that have ended
        largest = logits.max(-1)
        scores: FloatArray = values - largest - np.log(np.exp(logits - largest[:, None]).sum(-1))
    return scores

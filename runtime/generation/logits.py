"""The logits of a batch: after the prompts, checked, as log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hybrid_deploy.errors import BackendError, NotFiniteError
from hybrid_deploy.runtime.backends.protocol import (
    ApproximateLogits,
    Decoding,
    FloatArray,
    IntArray,
)


def prompt_logits(
    decoding: Decoding, prompts: Sequence[Sequence[int]], *, approximate: bool = False
) -> FloatArray:
    """Decodes the prompts; returns the logits (batch, vocabulary) of each first new token.

    Args:
        decoding: a started batch.
        prompts: the first tokens of each sequence, at least one.
        approximate: whether the logits may be off by the error bound of the decoding, which must
            then be an `ApproximateLogits`.
    """
    step, prefill = decoding.step, decoding.prefill
    if approximate:
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


def check_largest_logit(value: float, where: str) -> None:
    """Checks the largest logit of one sequence.

    Args:
        value: the largest logit, before or after the processors; or a score or an error bound,
            which are finite if the logits are.
        where: the sequence and the step, for the message.

    Raises:
        NotFiniteError: the logit is NaN or infinite.
        BackendError: the logit is -inf, so no token is allowed.
    """
    if value == -np.inf:
        raise BackendError(
            f"the generation settings allow no token for {where}; suppress fewer tokens, or allow "
            "more tokens or texts"
        )
    if not -np.inf < value < np.inf:
        raise NotFiniteError(where)


def log_probabilities(logits: FloatArray, chosen: FloatArray) -> FloatArray:
    """Returns the natural logarithm of the probability of each chosen token, (rows,) float32.

    Args:
        logits: (rows, vocabulary).
        chosen: (rows,), the logits of the chosen tokens.
    """
    with np.errstate(invalid="ignore"):  # rows of sequences that have ended may hold NaN
        largest = logits.max(-1)
        scores: FloatArray = chosen - largest - np.log(np.exp(logits - largest[:, None]).sum(-1))
    return scores

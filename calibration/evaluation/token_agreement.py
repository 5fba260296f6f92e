"""Compares the tokens of two variants, and a variant's prefill with its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hybrid_deploy.accuracy.bootstrap import Counts, Interval, interval_of
from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.protocol import Backend, FloatArray

LARGEST_PREFILL_SHARE = 0.25
"""Largest accepted distance of prefill from steps, in standard deviations of the logits.

Both compute the same numbers in another order. Activations of 8 bits that lie between two values
then round to either.
"""

_PROMPT_TOKENS = 5


@dataclass(frozen=True)
class Agreement:
    """How many tokens and sequences of two variants are equal.

    Attributes:
        sequences: number of sequences that both variants decoded.
        same_sequences: number of sequences whose tokens are all equal.
        tokens: sum over the sequences of the longer of the two lengths, in tokens.
        same_tokens: number of tokens that are equal at the same index.
    """

    sequences: int
    same_sequences: int
    tokens: int
    same_tokens: int

    @property
    def token_share(self) -> float:
        """Share of the tokens that are equal, within 0..1; 1 if there are none."""
        return self.same_tokens / self.tokens if self.tokens else 1.0


def check_prefill(bundle: Bundle, backend: Backend, inputs: Inputs) -> None:
    """Compares the prefill graph with the step graph, which decodes the same tokens one by one.

    The prompt has one column of padding more than its tokens, so that no backend decodes it by
    steps. Then a step reads the caches that prefill wrote. A capacity of one token has no room for
    that column; then nothing is compared.

    Args:
        bundle: has the generation defaults.
        backend: runs the variant.
        inputs: encoder inputs by name, batch first.

    Raises:
        BackendError: prefill does not run, its logits are not finite, or they differ from those of
            the steps by more than rounding explains.
    """
    stepped, prefilled = backend.start(inputs), backend.start(inputs)
    defaults, zeros = bundle.manifest.generation, np.zeros(stepped.batch, np.int64)
    length = min(_PROMPT_TOKENS, bundle.manifest.capacity - 1)
    if length < 1:
        return
    tokens = np.full((stepped.batch, length + 1), defaults.pad_token, np.int64)
    tokens[:, 0] = defaults.start_tokens[0]
    for index in range(length):
        expected = stepped.step(tokens[:, index].copy(), zeros + index).copy()
        if index + 1 < length:
            tokens[:, index + 1] = expected.argmax(-1)
    actual = prefilled.prefill(tokens, zeros, zeros + length - 1)
    _check_close(expected, actual, f"the prefill graph after {length} tokens")
    newest = expected.argmax(-1)
    expected = stepped.step(newest, zeros + length).copy()
    actual = prefilled.step(newest, zeros + length)
    _check_close(expected, actual, f"the step graph after a prefill of {length} tokens")


def _check_close(expected: FloatArray, actual: FloatArray, name: str) -> None:
    """Refuses logits (batch, vocabulary) that are not finite or far from those of the steps."""
    if not np.isfinite(actual).all():
        raise BackendError(f"the logits of {name} are not finite")
    spread = np.sqrt(np.square(expected - expected.mean(-1, keepdims=True)).mean(-1))
    share = np.sqrt(np.square(actual - expected).mean(-1)) / np.maximum(spread, 1e-30)
    if not share.max() <= LARGEST_PREFILL_SHARE:
        raise BackendError(
            f"the logits of {name} differ from those of steps alone by {share.max():.0%} of their "
            f"spread, {LARGEST_PREFILL_SHARE:.0%} at most is rounding; report this recipe and model"
        )


def compare_tokens(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Agreement:
    """Counts the equal tokens and sequences in pairs of token sequences, index by index."""
    return Agreement(
        sequences=len(pairs),
        same_sequences=sum(a == b for a, b in pairs),
        tokens=sum(max(len(a), len(b)) for a, b in pairs),
        same_tokens=sum(x == y for a, b in pairs for x, y in zip(a, b, strict=False)),
    )


def interval_of_different(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> Interval | None:
    """Returns the 95 % interval of the percentage of tokens that differ; None for a single pair."""
    longer = np.array([max(len(a), len(b)) for a, b in pairs], np.float64)
    same = [sum(x == y for x, y in zip(a, b, strict=False)) for a, b in pairs]
    return interval_of(Counts(longer - np.array(same), longer))

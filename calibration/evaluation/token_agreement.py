"""Compares the tokens of two variants, and checks that a variant's prefill runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.protocol import Backend


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
    """Decodes a prompt of one token by `prefill`, which decoding calls for longer prompts only.

    A backend may decode so short a prompt by steps, as ONNX Runtime's on the CPU does; then the
    prefill graph itself does not run.

    Raises:
        BackendError: prefill does not run, or its logits are not finite.
    """
    decoding = backend.start(inputs)
    defaults = bundle.manifest.generation
    tokens = np.full((decoding.batch, 1), defaults.start_tokens[0], np.int64)
    zeros = np.zeros(decoding.batch, np.int64)
    if not np.isfinite(decoding.prefill(tokens, zeros, zeros)).all():
        raise BackendError("the logits of the prefill graph are not finite")


def compare_tokens(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Agreement:
    """Counts the equal tokens and sequences in pairs of token sequences, index by index."""
    return Agreement(
        sequences=len(pairs),
        same_sequences=sum(a == b for a, b in pairs),
        tokens=sum(max(len(a), len(b)) for a, b in pairs),
        same_tokens=sum(x == y for a, b in pairs for x, y in zip(a, b, strict=False)),
    )

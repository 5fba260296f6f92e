"""Does a variant run in all its graphs, and does it say what another one says?"""

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
    """How often two variants give the same tokens.

    Attributes:
        sequences: how many were decoded with both.
        same_sequences: how many have the same tokens throughout.
        tokens: length of all sequences, the longer of each two.
        same_tokens: tokens that are the same at the same place.
    """

    sequences: int
    same_sequences: int
    tokens: int
    same_tokens: int

    @property
    def token_share(self) -> float:
        """Share of the tokens that are the same, within 0..1."""
        return self.same_tokens / self.tokens if self.tokens else 1.0


def check_prefill(bundle: Bundle, backend: Backend, inputs: Inputs) -> None:
    """Runs prefill, which a prompt of one token leaves out.

    Raises:
        BackendError: it does not run, or its logits are not finite.
    """
    decoding = backend.start(inputs)
    defaults = bundle.manifest.generation
    tokens = np.full((decoding.batch, 1), defaults.start_tokens[0], np.int64)
    zeros = np.zeros(decoding.batch, np.int64)
    if not np.isfinite(decoding.prefill(tokens, zeros, zeros)).all():
        raise BackendError("the logits of the prefill graph are not finite")


def compare_tokens(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Agreement:
    """Counts what pairs of sequences have in common, place by place."""
    return Agreement(
        sequences=len(pairs),
        same_sequences=sum(a == b for a, b in pairs),
        tokens=sum(max(len(a), len(b)) for a, b in pairs),
        same_tokens=sum(x == y for a, b in pairs for x, y in zip(a, b, strict=False)),
    )

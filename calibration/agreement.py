"""Does a new variant run, and does it say what the float variant says?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hybrid_deploy.bundle import Bundle
from hybrid_deploy.calibration.evaluation_set import typical_inputs
from hybrid_deploy.calibration.samples import Inputs, Samples
from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backend import (
    DEFAULT_BACKEND,
    Backend,
    Options,
    load_backend,
)
from hybrid_deploy.runtime.preprocess import prepare
from hybrid_deploy.runtime.session import Session

LARGEST_CHECK = 100
"""At most so many samples are decoded with both variants."""


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


def check_variant(
    bundle: Bundle,
    reference: str,
    variant: str,
    samples: Samples | None,
    progress: Callable[[str, int, int], None],
) -> Agreement:
    """Decodes samples with two variants and compares the tokens.

    Golden samples come first, then the given ones; where there are neither, an input of zeros
    only shows that the variant runs.

    Raises:
        BackendError: a variant does not run, or its logits are not finite.
    """
    sessions = [
        Session(bundle, name, load_backend(DEFAULT_BACKEND, bundle, name, Options()))
        for name in (reference, variant)
    ]
    total = min(LARGEST_CHECK, len(bundle.manifest.golden) + len(samples or ())) or 1
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for done, inputs in zip(range(total), _inputs(bundle, samples), strict=False):
        progress("check", done, total)
        results = [session.run_arrays(inputs)[0] for session in sessions]
        pairs += [(a.tokens, b.tokens) for a, b in zip(*results, strict=True)]
    check_prefill(bundle, sessions[1].backend, next(_inputs(bundle, samples)))
    progress("check", total, total)
    return compare_tokens(pairs)


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


def _inputs(bundle: Bundle, samples: Samples | None) -> Iterator[Inputs]:
    for sample in bundle.manifest.golden:
        path = bundle.folder / sample.file
        yield prepare([path], bundle.manifest.preprocess, folder=bundle.folder)
    if samples is not None:
        yield from samples
    elif not bundle.manifest.golden:
        yield typical_inputs(bundle)

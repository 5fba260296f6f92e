"""What one variant makes of all samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.samples.batches import SampleRow, batch_size, batches
from hybrid_deploy.calibration.samples.evaluation_set import EvaluationSet
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.progress import Progress, silent
from hybrid_deploy.runtime.backends.protocol import Backend
from hybrid_deploy.runtime.backends.registry import (
    DEFAULT_BACKEND,
    BackendOptions,
    load_backend,
)
from hybrid_deploy.runtime.generation.options import GREEDY
from hybrid_deploy.runtime.session.session import GenerationResult, Session


@dataclass(frozen=True)
class DecodedSet:
    """The sequences of a variant, in the order of the samples.

    Attributes:
        samples: for each sequence, the number of the sample that it was read from.
        tokens: for each sequence, its new tokens.
        texts: for each sequence, its text; None if the bundle has no vocabulary.
    """

    samples: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...] | None


def decode_all(
    bundle: Bundle,
    variant: str,
    samples: EvaluationSet | Sequence[Inputs],
    progress: Progress = silent,
    *,
    stage: str = "decode",
    backend: Backend | None = None,
    threads: int | None = None,
) -> DecodedSet:
    """Decodes all samples with one variant, those of equal shape together.

    Args:
        bundle: gives the generation defaults and the vocabulary.
        variant: name of the variant.
        samples: encoder inputs by name, batch first.
        progress: called with the number of samples that were begun.
        stage: name under which progress is reported.
        backend: the variant, if it is loaded already.
        threads: CPU threads within an operator, if it is loaded now; None leaves it to the
            backend.

    Raises:
        InputError: a sample does not fit the model.
        BackendError: the variant does not run, or its logits are not finite.
    """
    if backend is None:
        backend = load_backend(DEFAULT_BACKEND, bundle, variant, BackendOptions(threads))
    session = Session(bundle, variant, backend)
    found: dict[SampleRow, GenerationResult] = {}
    for batch in batches(samples, batch_size(bundle, variant)):
        results, _ = session.run_arrays(batch.inputs, options=GREEDY)
        found |= zip(batch.sample_rows, results, strict=False)  # a fixed batch may be filled up
        progress(stage, len({sample for sample, _ in found}), len(samples))
    places = sorted(found)
    texts = [text for place in places if (text := found[place].text) is not None]
    return DecodedSet(
        samples=tuple(sample for sample, _ in places),
        tokens=tuple(found[place].tokens for place in places),
        texts=None if bundle.manifest.vocabulary is None else tuple(texts),
    )

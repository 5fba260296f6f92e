"""Decodes all samples with one variant."""

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
    """The sequences that one variant decodes, in the order of the samples.

    Attributes:
        samples: for each sequence, the index of its sample; a sample may hold several sequences.
        tokens: for each sequence, its generated tokens without the prompt.
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
    """Decodes all samples greedily with one variant; samples of equal shape form a batch.

    Args:
        bundle: has the variant, the generation defaults and the vocabulary.
        variant: name of the variant.
        samples: encoder inputs of each sample by name, batch first.
        progress: called with the number of samples that are decoded at least in part.
        stage: name of the stage in calls of `progress`.
        backend: the backend that holds the variant; loaded here if None.
        threads: number of CPU threads of one operator, used if the backend is loaded here; None
            leaves the choice to the backend.

    Raises:
        InputError: a sample does not fit the model.
        BackendError: the variant does not run, or its logits are not finite.
    """
    if backend is None:
        backend = load_backend(DEFAULT_BACKEND, bundle, variant, BackendOptions(threads))
    session = Session(bundle, variant, backend)
    results_by_row: dict[SampleRow, GenerationResult] = {}
    progress(stage, 0, len(samples))
    for batch in batches(samples, batch_size(bundle, variant)):
        results, _ = session.run_arrays(batch.inputs, options=GREEDY)
        # not strict: a batch of fixed size may end with repeated rows
        results_by_row |= zip(batch.sample_rows, results, strict=False)
        progress(stage, len({sample for sample, _ in results_by_row}), len(samples))
    rows = sorted(results_by_row)
    texts = [text for row in rows if (text := results_by_row[row].text) is not None]
    return DecodedSet(
        samples=tuple(sample for sample, _ in rows),
        tokens=tuple(results_by_row[row].tokens for row in rows),
        texts=None if bundle.manifest.vocabulary is None else tuple(texts),
    )

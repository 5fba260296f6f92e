"""Evaluation sets: samples with their true texts, where these are known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import TensorSpec
from hybrid_deploy.calibration.samples.samples import (
    Inputs,
    Samples,
    SampleSource,
    SkippedSample,
    example_of,
    open_samples,
)
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import CalibrationError, UsageError
from hybrid_deploy.labels import (
    LABELS_FILE,
    load_labels,
)

Item: TypeAlias = str | Path | Inputs
EvaluationSource: TypeAlias = str | Path | Iterable[Item | tuple[Item, str | None]]
"""A folder (with its `labels.csv`, if it has one), a file, or an iterable. An item of the iterable
is a file, encoder inputs by name (batch first), or a pair of one of these and its true text."""

_DTYPES = {"float": np.float32, "int64": np.int64, "bool": np.bool_}


@dataclass(frozen=True)
class EvaluationSet:
    """Samples to decode, with their true texts where these are known.

    Iterating over the set yields the encoder inputs of the samples at `indices`.

    Attributes:
        samples: all samples; a file is read when its sample is needed.
        texts: the true text of each of `samples`, None if it is not known.
        indices: indices into `samples` of the samples that belong to the set, ascending.
        skipped: samples that cannot be used and were left out.
        stand_in: what the set holds in place of real inputs; None if its inputs are real.
    """

    samples: Samples
    texts: tuple[str | None, ...]
    indices: tuple[int, ...]
    skipped: tuple[SkippedSample, ...] = ()
    stand_in: str | None = None

    @classmethod
    def unlabelled(cls, samples: Samples, stand_in: str | None = None) -> EvaluationSet:
        """Returns the set of all these samples, without true texts."""
        return cls(samples, (None,) * len(samples), tuple(range(len(samples))), stand_in=stand_in)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Inputs]:
        """Yields the encoder inputs of each sample of the set.

        Raises:
            InputError: a file cannot be read; the message names it.
        """
        return map(self.samples.__getitem__, self.indices)

    @property
    def expected_texts(self) -> list[str | None]:
        """The true text of each sample of the set, None if it is not known."""
        return [self.texts[index] for index in self.indices]

    @property
    def labelled_count(self) -> int:
        """Number of samples of the set whose true text is known."""
        return sum(text is not None for text in self.expected_texts)

    def evenly_spaced(self, max_samples: int) -> EvaluationSet:
        """Returns a set of at most `max_samples` of the samples, evenly spaced in their order."""
        count = len(self.indices)
        if count <= max_samples:
            return self
        spaced = tuple(self.indices[i * count // max_samples] for i in range(max_samples))
        return replace(self, indices=spaced)


def open_evaluation_set(
    source: EvaluationSource | None, bundle: Bundle, *, skip_bad: bool = False
) -> EvaluationSet:
    """Returns the evaluation set of a folder, of files or of an iterable.

    Args:
        source: the samples; None takes the bundle's golden samples; without them the example of the
            export, or one input of zeros. Golden samples get no true text: the text in the bundle
            is the output of the original model, which may be wrong.
        bundle: its preprocessing turns a file into encoder inputs.
        skip_bad: whether to read every sample once and leave out those that cannot be used.

    Raises:
        InputError: a folder or a file does not exist, or the labels are wrong.
        CalibrationError: there is no sample, or none can be used.
        UsageError: there are labels, and the bundle has no vocabulary to compare them with.
    """
    if source is None and not bundle.manifest.real_golden:
        return _without_real_inputs(bundle)
    items, texts = _split_labels(source, bundle)
    samples = open_samples(items, bundle.manifest.preprocess, bundle.folder)
    if texts is None:
        texts = [None] * len(samples)
    if bundle.manifest.vocabulary is None and any(text is not None for text in texts):
        raise UsageError(
            f"the samples have true texts, but {bundle.folder} has no vocabulary to write its "
            "tokens as text; leave the texts out, or export it with a vocabulary"
        )
    indices, skipped = _usable(samples) if skip_bad else (tuple(range(len(samples))), ())
    return EvaluationSet(samples, tuple(texts), indices, skipped)


def _without_real_inputs(bundle: Bundle) -> EvaluationSet:
    example = example_of(bundle)
    if example is not None:
        return EvaluationSet.unlabelled(example, stand_in="the example of the export")
    zeros = open_samples([typical_inputs(bundle)], bundle.manifest.preprocess, bundle.folder)
    return EvaluationSet.unlabelled(zeros, stand_in="an input of zeros")


def _usable(samples: Samples) -> tuple[tuple[int, ...], tuple[SkippedSample, ...]]:
    """Reads every sample; returns the indices of those that can be used, and the skipped ones."""
    problems = [samples.problem_with(index) for index in range(len(samples))]
    usable = tuple(index for index, problem in enumerate(problems) if problem is None)
    skipped = tuple(problem for problem in problems if problem is not None)
    if not usable:
        raise CalibrationError(f"none of the inputs can be used: {skipped[0].reason}")
    return usable, skipped


def _split_labels(
    source: EvaluationSource | None, bundle: Bundle
) -> tuple[SampleSource, list[str | None] | None]:
    """Returns the inputs and, separately, their texts; None in place of texts if there are none."""
    if source is None:
        return [bundle.folder / sample.file for sample in bundle.manifest.real_golden], None
    if isinstance(source, (str, Path)):
        folder = Path(source)
        if not (folder / LABELS_FILE).is_file():
            return folder, None
        labels = load_labels(folder)
        return [label.file for label in labels], [label.text for label in labels]
    pairs = [
        item if isinstance(item, tuple) and len(item) == 2 else (item, None) for item in source
    ]
    items = [item for item, _ in pairs]
    # the type names files or arrays, but `Samples` also takes a mixed list
    return cast("SampleSource", items), [text for _, text in pairs]


def typical_inputs(bundle: Bundle) -> Inputs:
    """Returns encoder inputs of zeros, every dimension of its typical size.

    They stand in where a bundle has no samples: a variant must at least run on them.
    """
    variant = next(iter(bundle.manifest.variants))
    specs = bundle.graph(variant, GraphRole.ENCODER).inputs
    return {spec.name: np.zeros(_sizes(bundle, spec), _DTYPES[spec.dtype]) for spec in specs}


def _sizes(bundle: Bundle, spec: TensorSpec) -> list[int]:
    dims = bundle.manifest.dims
    return [dims[size].typical if isinstance(size, str) else size for size in spec.shape]

"""What variants are evaluated on: inputs with, where it is known, the text that is right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np

from hybrid_deploy.accuracy import LABELS_FILE, load_labels
from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import TensorSpec
from hybrid_deploy.calibration.samples.samples import (
    Inputs,
    Samples,
    SampleSource,
    SkippedSample,
    open_samples,
)
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import CalibrationError, UsageError

Item: TypeAlias = str | Path | Inputs
EvaluationSource: TypeAlias = str | Path | Iterable[Item | tuple[Item, str | None]]
"""A folder (with its `labels.csv`, if it has one), a file, or files, encoder inputs by name (batch
first) and pairs of such an input with its text, as they come."""

_DTYPES = {"float": np.float32, "int64": np.int64, "bool": np.bool_}


@dataclass(frozen=True)
class EvaluationSet:
    """Inputs with the text they should give, as far as it is known.

    Attributes:
        samples: the inputs; files are read when they are needed.
        texts: for each sample its true text, None where nobody said it.
        chosen: numbers of the samples that count, in their order.
        skipped: samples that cannot be used and were left out.
    """

    samples: Samples
    texts: tuple[str | None, ...]
    indices: tuple[int, ...]
    skipped: tuple[SkippedSample, ...] = ()

    @classmethod
    def unlabelled(cls, samples: Samples) -> EvaluationSet:
        """Returns the set of all these samples, none of which has a true text."""
        return cls(samples, (None,) * len(samples), tuple(range(len(samples))))

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Inputs]:
        """Yields the encoder inputs of each chosen sample.

        Raises:
            InputError: a file cannot be read; the message names it.
        """
        return map(self.samples.__getitem__, self.indices)

    @property
    def expected_texts(self) -> list[str | None]:
        """The true text of each chosen sample, None where nobody said it."""
        return [self.texts[number] for number in self.indices]

    @property
    def labelled_count(self) -> int:
        """How many of these texts are known."""
        return sum(text is not None for text in self.expected_texts)

    def evenly_spaced(self, max_samples: int) -> EvaluationSet:
        """Returns at most so many of the samples, evenly spread."""
        count = len(self.indices)
        if count <= max_samples:
            return self
        return replace(
            self, chosen=tuple(self.indices[i * count // max_samples] for i in range(max_samples))
        )


def open_evaluation_set(
    source: EvaluationSource | None, bundle: Bundle, *, skip_bad: bool = False
) -> EvaluationSet:
    """Returns the evaluation set of a folder, of files or of an iterable.

    Without a source these are the bundle's golden samples, or zeros if it has none. The text of a
    golden sample is what the original model made of it, not the truth, so it is no label.

    Args:
        source: where the inputs come from.
        bundle: says what an input must be.
        skip_bad: read every sample once and leave out those that cannot be used.

    Raises:
        InputError: a folder or a file does not exist, or the labels are wrong.
        CalibrationError: there is not one sample.
        UsageError: there are labels, and the bundle has no vocabulary to compare them with.
    """
    items, texts = _labelled(source, bundle)
    samples = open_samples(items, bundle.manifest.preprocess, bundle.folder)
    if texts is None:
        texts = [None] * len(samples)
    if bundle.manifest.vocabulary is None and any(text is not None for text in texts):
        raise UsageError(
            f"the samples have true texts, but {bundle.folder} has no vocabulary to write its "
            "tokens as text; leave the texts out, or export it with a vocabulary"
        )
    chosen, skipped = _sound(samples) if skip_bad else (tuple(range(len(samples))), ())
    return EvaluationSet(samples, tuple(texts), chosen, skipped)


def _sound(samples: Samples) -> tuple[tuple[int, ...], tuple[SkippedSample, ...]]:
    """Reads every sample; gives the numbers of those that can be used, and what is with the others.

    Raises:
        CalibrationError: none can be used.
    """
    problems = [samples.problem_of(number) for number in range(len(samples))]
    sound = tuple(number for number, problem in enumerate(problems) if problem is None)
    skipped = tuple(problem for problem in problems if problem is not None)
    if not sound:
        raise CalibrationError(f"none of the inputs can be used: {skipped[0].reason}")
    return sound, skipped


def _labelled(
    source: EvaluationSource | None, bundle: Bundle
) -> tuple[SampleSource, list[str | None] | None]:
    """Takes inputs and texts apart; None if there are no texts at all."""
    if source is None:
        golden = [bundle.folder / sample.file for sample in bundle.manifest.golden]
        return golden or [typical_inputs(bundle)], None
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
    return cast("Source", items), [text for _, text in pairs]  # a mix is taken as well


def typical_inputs(bundle: Bundle) -> Inputs:
    """Returns one input of zeros, every dimension of typical size: it shows what runs at all."""
    variant = next(iter(bundle.manifest.variants))
    specs = bundle.graph(variant, GraphRole.ENCODER).inputs
    return {spec.name: np.zeros(_sizes(bundle, spec), _DTYPES[spec.dtype]) for spec in specs}


def _sizes(bundle: Bundle, spec: TensorSpec) -> list[int]:
    dims = bundle.manifest.dims
    return [dims[size].typical if isinstance(size, str) else size for size in spec.shape]

"""Adds accuracy to the rows of `compare`: rates, changes against float, and the worst inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hybrid_deploy.accuracy.error_rates import (
    ComparedTexts,
    changes_of,
    compare_exactly,
    compare_texts,
    intervals_of,
)
from hybrid_deploy.accuracy.normalizers import Normalizer
from hybrid_deploy.accuracy.records import changes_record, rates_record
from hybrid_deploy.accuracy.worst_inputs import worst_inputs
from hybrid_deploy.contract import FLOAT_VARIANT
from hybrid_deploy.errors import InputError, MissingDependencyError
from hybrid_deploy.labels import LabelledFile

OK = "ok"
"""Status of a row in which everything was measured."""


@dataclass(frozen=True)
class Reading:
    """What a variant reads on a backend.

    Attributes:
        variant: name of the variant.
        backend: name of the backend.
        texts: the decoded text of each input.
        compared: the texts beside the expected ones.
        status: `ok`, or which numbers are missing and why.
    """

    variant: str
    backend: str
    texts: Sequence[str]
    compared: ComparedTexts
    status: str


def read_accuracy(
    variant: str,
    backend: str,
    labels: Sequence[LabelledFile],
    texts: Sequence[str],
    normalizer: Normalizer,
) -> Reading:
    """Returns the texts of a variant beside the expected ones.

    What cannot be measured is left out: without jiwer, and with empty labels alone, there are exact
    matches only.
    """
    expected = [label.text for label in labels]
    status = OK
    try:
        compared = compare_texts(expected, texts, normalizer)
    except (MissingDependencyError, InputError) as error:
        compared = compare_exactly(expected, texts, normalizer)
        status = f"no error rates: {error}"
    return Reading(variant, backend, texts, compared, status)


def float_reading(readings: Sequence[Reading]) -> Reading | None:
    """Returns what the float variant reads on the first backend that ran it; None without it."""
    return next((reading for reading in readings if reading.variant == FLOAT_VARIANT), None)


def accuracy_record(
    reading: Reading, reference: Reading | None, labels: Sequence[LabelledFile], worst: int
) -> dict[str, object]:
    """Returns the rates of a reading, their changes against a reference, and its worst inputs.

    Args:
        reading: what the variant reads.
        reference: what float reads; None, or the reading itself, leaves the changes out.
        labels: the inputs with their expected texts.
        worst: largest number of worst inputs.
    """
    reference = None if reference is reading else reference
    rates = reading.compared.rates
    percents = {name: counts.percent for name, counts in rates.items()}
    record = rates_record(percents, intervals_of(reading.compared))
    record |= {"normalizer": reading.compared.normalizer, "status": reading.status}
    if reference is not None:
        record |= changes_record(changes_of(reading.compared, reference.compared))
        record["reference"] = f"{reference.variant} on {reference.backend}"
    return record | {"worst": _worst_records(reading, reference, labels, worst)}


def _worst_records(
    reading: Reading, reference: Reading | None, labels: Sequence[LabelledFile], most: int
) -> list[dict[str, object]]:
    losses = worst_inputs(reading.compared, None if reference is None else reference.compared, most)
    return [
        {
            "input": labels[loss.index].file.name,
            "lost_characters": loss.lost,
            "errors": loss.errors,
            "expected": labels[loss.index].text,
            "reference": None if reference is None else reference.texts[loss.index],
            "decoded": reading.texts[loss.index],
        }
        for loss in losses
    ]

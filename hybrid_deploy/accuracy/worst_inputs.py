"""The inputs on which a variant loses most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hybrid_deploy.accuracy.error_rates import ComparedTexts


@dataclass(frozen=True)
class WorstInput:
    """An input on which a variant makes more errors than its reference.

    Attributes:
        index: index of the input.
        lost: errors of the variant minus those of the reference, in characters.
        errors: errors of the variant, in characters.
    """

    index: int
    lost: int
    errors: int


def worst_inputs(
    compared: ComparedTexts, reference: ComparedTexts | None, most: int
) -> list[WorstInput]:
    """Returns the inputs that lose most, the worst first; an input that loses nothing is none.

    Args:
        compared: texts of the variant.
        reference: texts of the reference on the same inputs; None counts every error as lost.
        most: largest number of inputs to return.
    """
    if "cer" not in compared.rates:
        return []
    errors = compared.rates["cer"].parts.astype(np.int64)
    lost = errors
    if reference is not None and "cer" in reference.rates:
        lost = errors - reference.rates["cer"].parts.astype(np.int64)
    order = sorted(range(len(errors)), key=lambda index: (-lost[index], -errors[index], index))
    return [
        WorstInput(index, int(lost[index]), int(errors[index]))
        for index in order[:most]
        if lost[index] > 0
    ]

"""What a variant may lose where no budget is given; one that loses more is not written.

A variant of too few bits still decodes fluent text, only another one, so its loss must not depend
on somebody who reads the report. A user who accepts a loss says so, with a budget.
"""

from __future__ import annotations

from hybrid_deploy.calibration.evaluation.evaluate import Evaluation
from hybrid_deploy.calibration.evaluation.metrics import BUILT_IN
from hybrid_deploy.errors import CalibrationError

MAX_POINTS = 1.0
"""Largest accepted drop of a metric in percent, where true texts are known."""

MIN_AGREEMENT = 0.95
"""Least share of float's own tokens that a variant must find likeliest too, without true texts.

Measured with real speech: 8 bits agree in 98 % of places, and 4 bits that cost ten points of word
error rate in 89 %.
"""

_FORGIVEN_TOKENS = 2
"""Number of differing tokens that prove nothing, however few tokens there are."""

_ROUNDING = 1e-6  # of a number of tokens that is computed from a share


def check_accuracy(evaluation: Evaluation, variant: str) -> None:
    """Refuses a variant that loses much; one that no real input was decoded with passes.

    Args:
        evaluation: how the variant compares with float.
        variant: name of the variant.

    Raises:
        CalibrationError: the loss is larger than `MAX_POINTS`, or the agreement smaller than
            `MIN_AGREEMENT`; the message says how large it is, on what, and the ways on.
    """
    if evaluation.stand_in is not None:
        return
    inputs = f"{evaluation.samples} input{'s' if evaluation.samples > 1 else ''}"
    if _is_in_points(evaluation):
        if evaluation.drop <= MAX_POINTS:
            return
        loss = f"loses {evaluation.drop:.1f} {evaluation.drop_unit} on {inputs}"
    else:
        divergence = evaluation.divergence
        differing = (1 - divergence.same_argmax_share) * divergence.steps
        accepted = max(_FORGIVEN_TOKENS, (1 - MIN_AGREEMENT) * divergence.steps)
        if differing <= accepted + _ROUNDING:
            return
        loss = (
            f"predicts {100 * divergence.same_argmax_share:.1f} % of {evaluation.reference}'s "
            f"{divergence.steps} tokens on {inputs} ({100 * MIN_AGREEMENT:g} % is the least)"
        )
    raise CalibrationError(
        f"{variant} {loss}, so it was not written; give --max-drop N to keep layers in float until "
        "it loses N points at most, or take a precision of more bits, such as int8-cpu or "
        "int8-weights"
    )


def check_budget(evaluation: Evaluation, variant: str, max_drop: float) -> None:
    """Refuses a finished variant that loses more than the trials that it was chosen by.

    Args:
        evaluation: how the variant compares with float.
        variant: name of the variant.
        max_drop: the largest allowed `Evaluation.drop`.

    Raises:
        CalibrationError: the loss is larger.
    """
    if not evaluation.drop <= max_drop:
        raise CalibrationError(
            f"{variant} loses {evaluation.drop:.2f} {evaluation.drop_unit} as it was written, more "
            f"than the budget of {max_drop:g}, so it was not added; run the command again"
        )


def _is_in_points(evaluation: Evaluation) -> bool:
    """Returns whether the drop is in percent: not if the user's own metric measures it."""
    if evaluation.score is not None:
        return evaluation.score.metric.name in BUILT_IN
    return evaluation.accuracy is not None

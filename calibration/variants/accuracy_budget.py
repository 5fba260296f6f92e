"""Holds an accuracy budget: finds the few layers that must stay in float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hybrid_deploy.calibration.evaluation.evaluate import Evaluation
from hybrid_deploy.calibration.variants.sensitivity import Sensitivity
from hybrid_deploy.errors import CalibrationError

Measure = Callable[[Sequence[str]], Evaluation]
"""Evaluates the variant in which the named layers stay in float."""


@dataclass(frozen=True)
class LayersInFloat:
    """The layers that stay in float so that the budget holds.

    Attributes:
        names: names of the layers.
        parameters: number of weight values in these layers.
        evaluation: evaluation of the variant with these layers in float.
    """

    names: tuple[str, ...]
    parameters: int
    evaluation: Evaluation


def find_layers_in_float(
    max_drop: float, ranked: Sequence[Sensitivity], measure: Measure
) -> LayersInFloat:
    """Returns layers with few parameters that must stay in float so that the drop is within budget.

    Two binary searches look for the shortest prefix of an order that holds the budget: the order by
    divergence, and the order by divergence per parameter. The result with fewer parameters is
    taken. A binary search assumes that the drop falls with every further layer in float, which is
    mostly true.

    Args:
        max_drop: the largest allowed `Evaluation.drop`, in its unit.
        ranked: the layers that are quantized, the most sensitive first.
        measure: evaluates the variant with the named layers in float.

    Raises:
        CalibrationError: the budget does not hold even with every layer in float.
    """
    all_names = [sensitivity.layer.name for sensitivity in ranked]
    all_in_float = measure(all_names)
    if all_in_float.drop > max_drop:
        raise CalibrationError(
            f"the budget of {max_drop:g} {all_in_float.drop_unit} does not hold: "
            f"{all_in_float.drop:.2f} are lost even with every layer float; no variant was written"
        )
    orders = (
        ranked,
        sorted(ranked, key=lambda sensitivity: sensitivity.kl_per_parameter, reverse=True),
    )
    choices = [
        _shortest_prefix(max_drop, order, measure) or _layers_in_float(ranked, all_in_float)
        for order in orders
    ]
    return min(choices, key=lambda choice: choice.parameters)


def _shortest_prefix(
    max_drop: float, order: Sequence[Sensitivity], measure: Measure
) -> LayersInFloat | None:
    """Returns the shortest proper prefix of an order that holds the budget; None if none does."""
    low, high = 1, len(order) - 1
    best: LayersInFloat | None = None
    while low <= high:
        count = (low + high) // 2
        evaluation = measure([sensitivity.layer.name for sensitivity in order[:count]])
        if evaluation.drop <= max_drop:
            best, high = _layers_in_float(order[:count], evaluation), count - 1
        else:
            low = count + 1
    return best


def _layers_in_float(layers: Sequence[Sensitivity], evaluation: Evaluation) -> LayersInFloat:
    return LayersInFloat(
        names=tuple(sensitivity.layer.name for sensitivity in layers),
        parameters=sum(sensitivity.layer.parameter_count for sensitivity in layers),
        evaluation=evaluation,
    )

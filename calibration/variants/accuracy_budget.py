"""Holding a budget of accuracy: the cheapest set of layers goes back to float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hybrid_deploy.calibration.evaluation.evaluate import Evaluation
from hybrid_deploy.calibration.variants.sensitivity import Sensitivity
from hybrid_deploy.errors import CalibrationError

Measure = Callable[[Sequence[str]], Evaluation]
"""Evaluates the variant in which the named layers stay float."""


@dataclass(frozen=True)
class LayersInFloat:
    """The layers that stay float so that a budget holds.

    Attributes:
        names: of the layers.
        parameters: numbers in their weights.
        evaluation: of the variant that keeps them.
    """

    names: tuple[str, ...]
    parameters: int
    evaluation: Evaluation


def find_layers_in_float(
    max_drop: float, ranked: Sequence[Sensitivity], measure: Measure
) -> LayersInFloat:
    """Finds few parameters to keep float so that the drop stays within a budget.

    Layers are taken by their divergence, and in a second search by divergence per parameter; each
    search halves the number of layers, as the drop mostly falls with every layer that is kept.

    Args:
        max_drop: the largest `Evaluation.drop`.
        ranked: the layers that are quantized.
        measure: evaluates a choice.

    Raises:
        CalibrationError: the budget holds not even with every layer float.
    """
    everything = [one.layer.name for one in ranked]
    least = measure(everything)
    if least.drop > max_drop:
        raise CalibrationError(
            f"the budget of {max_drop:g} {least.drop_unit} does not hold: {least.drop:.2f} are "
            "lost even with every layer float; no variant was written"
        )
    orders = (
        ranked,
        sorted(ranked, key=lambda one: one.kl_per_parameter, reverse=True),
    )
    found = [
        _shortest_prefix(max_drop, order, measure) or _layers_in_float(ranked, least)
        for order in orders
    ]
    return min(found, key=lambda kept: kept.parameters)


def _shortest_prefix(
    max_drop: float, order: Sequence[Sensitivity], measure: Measure
) -> LayersInFloat | None:
    """Searches for the shortest beginning of an order that holds the budget."""
    low, high = 1, len(order) - 1
    best: LayersInFloat | None = None
    while low <= high:
        count = (low + high) // 2
        evaluation = measure([one.layer.name for one in order[:count]])
        if evaluation.drop <= max_drop:
            best, high = _layers_in_float(order[:count], evaluation), count - 1
        else:
            low = count + 1
    return best


def _layers_in_float(layers: Sequence[Sensitivity], evaluation: Evaluation) -> LayersInFloat:
    return LayersInFloat(
        names=tuple(one.layer.name for one in layers),
        parameters=sum(one.layer.parameters for one in layers),
        evaluation=evaluation,
    )

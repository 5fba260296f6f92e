"""The search for layers in float, on a simulated model where the cost of each layer is known."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from hybrid_deploy.calibration.evaluation.evaluate import Evaluation
from hybrid_deploy.calibration.qdq.layers import Layer
from hybrid_deploy.calibration.variants.accuracy_budget import Measure, find_layers_in_float
from hybrid_deploy.calibration.variants.sensitivity import Sensitivity
from hybrid_deploy.errors import CalibrationError


def ranking(costs: dict[str, tuple[float, int]]) -> list[Sensitivity]:
    layers = [
        Sensitivity(Layer(name, "MatMul", (size,), size, {}), cost, cost)
        for name, (cost, size) in costs.items()
    ]
    return sorted(layers, key=lambda sensitivity: sensitivity.kl_mean_nats, reverse=True)


def measure_of(costs: dict[str, tuple[float, int]], always: float = 0.0) -> Measure:
    """Returns a measure whose drop is the sum of the costs of all layers that are not in float."""

    def measure(layers_in_float: Sequence[str]) -> Evaluation:
        drop = always + sum(
            cost for name, (cost, _) in costs.items() if name not in layers_in_float
        )
        return cast(Evaluation, SimpleNamespace(drop=drop, drop_unit="CER points"))

    return measure


def test_the_fewest_parameters_stay_float() -> None:
    costs = {"large": (3.0, 1000), "a": (2.0, 10), "b": (1.5, 10), "c": (0.1, 10), "d": (0.1, 10)}
    choice = find_layers_in_float(3.5, ranking(costs), measure_of(costs))
    assert set(choice.names) == {"a", "b"}
    assert choice.parameters == 20
    assert choice.evaluation.drop <= 3.5


def test_the_one_layer_that_costs_most_is_chosen() -> None:
    costs = {"sensitive": (9.0, 100)} | {f"l{i}": (0.01, 100) for i in range(40)}
    choice = find_layers_in_float(0.5, ranking(costs), measure_of(costs))
    assert choice.names == ("sensitive",)


def test_a_budget_that_needs_every_layer_in_float() -> None:
    costs = {"a": (1.0, 10), "b": (1.0, 10)}
    assert set(find_layers_in_float(0.0, ranking(costs), measure_of(costs)).names) == {"a", "b"}


def test_a_budget_that_cannot_hold_is_refused() -> None:
    costs = {"a": (1.0, 10), "b": (1.0, 10)}
    with pytest.raises(CalibrationError) as caught:
        find_layers_in_float(0.5, ranking(costs), measure_of(costs, always=0.75))
    assert str(caught.value) == (
        "the budget of 0.5 CER points does not hold: 0.75 are lost even with every layer float; "
        "no variant was written"
    )

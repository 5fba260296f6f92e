from types import SimpleNamespace
from typing import cast

from hybrid_deploy.calibration.automatic import Candidate, choose, cpu_candidates
from hybrid_deploy.calibration.evaluation import Evaluation
from hybrid_deploy.devices import check_precision, device_of


def candidate(name: str, drop: float | None, speedup: float) -> Candidate:
    recipe = next(r for r in cpu_candidates() if r.name == name)
    evaluation = None
    if drop is not None:
        evaluation = cast(Evaluation, SimpleNamespace(drop=drop, drop_unit="CER points"))
    return Candidate(recipe, evaluation, 1 / speedup, speedup, "" if evaluation else "failed: x")


def verdicts(*candidates: Candidate) -> list[str]:
    return [one.verdict for one in choose(candidates, max_drop=0.5)]


def test_the_fastest_within_the_budget_is_chosen() -> None:
    assert verdicts(
        candidate("int8-weights", 0.1, 1.5),
        candidate("int4-weights", 0.5, 2.0),
        candidate("int8-cpu", 0.6, 3.0),
    ) == ["holds the budget", "chosen", "loses more than 0.5 CER points"]


def test_nothing_is_chosen_that_is_no_faster_or_worse_or_broken() -> None:
    assert verdicts(
        candidate("int8-weights", 0.0, 1.0),
        candidate("int4-weights", 9.0, 2.0),
        candidate("int8-cpu", None, 2.0),
    ) == ["not faster than float", "loses more than 0.5 CER points", "failed: x"]


def test_every_candidate_suits_a_cpu() -> None:
    for recipe in cpu_candidates():
        check_precision(device_of("cpu"), recipe.encoder.value, recipe.decoder.value)

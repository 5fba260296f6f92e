from types import SimpleNamespace
from typing import cast

from hybrid_deploy.calibration.evaluation.evaluate import Evaluation
from hybrid_deploy.calibration.variants.auto_select import Candidate, choose_fastest, cpu_candidates
from hybrid_deploy.device_support import check_precision, device_of


def candidate(
    name: str, drop: float | None, speedup: float, lower_quartile: float | None = None
) -> Candidate:
    recipe = next(r for r in cpu_candidates() if r.name == name)
    evaluation = None
    if drop is not None:
        evaluation = cast(Evaluation, SimpleNamespace(drop=drop, drop_unit="CER points"))
    quartile = speedup if lower_quartile is None else lower_quartile
    verdict = "" if evaluation else "failed: x"
    return Candidate(recipe, evaluation, 1 / speedup, speedup, quartile, verdict)


def verdicts(*candidates: Candidate) -> list[str]:
    return [judged.verdict for judged in choose_fastest(candidates, max_drop=0.5)]


def test_the_fastest_within_the_budget_is_chosen() -> None:
    assert verdicts(
        candidate("fp32-cpu", 0.1, 1.5),
        candidate("int4-cpu", 0.5, 2.0),
        candidate("int8-cpu", 0.6, 3.0),
    ) == ["holds the budget", "chosen", "loses more than 0.5 CER points"]


def test_a_slow_inaccurate_or_failed_candidate_is_not_chosen() -> None:
    assert verdicts(
        candidate("fp32-cpu", 0.0, 1.0),
        candidate("int4-cpu", 9.0, 2.0),
        candidate("int8-cpu", None, 2.0),
    ) == ["not faster than float", "loses more than 0.5 CER points", "failed: x"]


def test_a_speedup_must_occur_in_three_quarters_of_the_measurements() -> None:
    assert verdicts(candidate("fp32-cpu", 0.0, 1.2, lower_quartile=0.97)) == [
        "not faster than float"
    ]


def test_every_candidate_suits_a_cpu() -> None:
    for recipe in cpu_candidates():
        check_precision(device_of("cpu"), recipe.encoder.value, recipe.decoder.value)

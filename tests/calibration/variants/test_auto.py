"""Evaluates and times variants on this machine and adds the fastest that holds the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.calibration.quantize import quantize_automatically
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.calibration.variants.auto_select import CHOSEN_VERDICT, Speed
from hybrid_deploy.calibration.variants.request import QuantizationInputs
from hybrid_deploy.errors import BackendError, UsageError
from tests.fakes.edited_bundle import with_sensitive_head

CANDIDATES = ["fp32-cpu", "fp32-cpu+int8-cpu", "fp32-cpu+int4-cpu", "int8-cpu", "int4-cpu"]
Timed = Callable[[Mapping[str, float]], None]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Timed:
    """Sets the measured speedups of variants; variants without a speedup fail."""

    def set_speeds(speedups: Mapping[str, float]) -> None:
        def speeds(bundles: Mapping[str, Bundle], reference: str, *_: object) -> dict[str, Speed]:
            name = list(bundles)[1]
            assert reference == "fp32"
            if name not in speedups:
                raise BackendError("out of memory")
            return {name: Speed(10 / speedups[name], speedups[name], speedups[name])}

        monkeypatch.setattr(
            "hybrid_deploy.calibration.variants.variant_builder.measure_speeds", speeds
        )

    return set_speeds


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_the_measurements_decide(bundle: Bundle, images: list[Inputs]) -> None:
    report = quantize_automatically(bundle.folder, QuantizationInputs(images), threads=1)
    assert [candidate.recipe.name for candidate in report.candidates] == CANDIDATES
    assert all(c.total_ms > 0 and c.speedup > 0 for c in report.candidates)
    fast = {
        candidate.recipe.name: candidate.speedup
        for candidate in report.candidates
        if candidate.speedup >= 1.03 and candidate.speedup_lower_quartile >= 1
    }
    chosen = [
        candidate.recipe.name
        for candidate in report.candidates
        if candidate.verdict == CHOSEN_VERDICT
    ]
    assert chosen == ([max(fast, key=lambda name: fast[name])] if fast else [])
    assert set(open_bundle(bundle.folder).manifest.variants) == {"fp32", *chosen}
    refusals = {candidate.verdict for candidate in report.candidates}
    refusals -= {CHOSEN_VERDICT, "holds the budget"}
    assert refusals <= {"not faster than float"}
    assert (report.chosen is not None) == bool(chosen)


def test_the_fastest_is_added(bundle: Bundle, images: list[Inputs], timed: Timed) -> None:
    timed({"fp32-cpu": 1.5, "fp32-cpu+int8-cpu": 2.0, "fp32-cpu+int4-cpu": 1.8, "int8-cpu": 0.9})
    report = quantize_automatically(bundle.folder, QuantizationInputs(images), name="best")
    assert [candidate.verdict for candidate in report.candidates] == [
        "holds the budget", CHOSEN_VERDICT, "holds the budget", "not faster than float",
        "failed: out of memory",
    ]  # fmt: skip
    assert report.chosen is not None
    assert (report.chosen.variant, report.chosen.precision) == ("best", "fp32-cpu+int8-cpu")
    variant = open_bundle(bundle.folder).variant("best")
    assert variant.precision.decoder == "int8-cpu"
    record = report.candidates[1].record()
    assert (record["total_ms"], record["speedup"], record["drop"]) == (5.0, 2.0, 0.0)
    assert report.candidates[4].record()["size_mb"] is None


def test_nothing_is_added_that_is_not_faster(
    bundle: Bundle, images: list[Inputs], timed: Timed
) -> None:
    timed(dict.fromkeys(CANDIDATES, 1.02))
    before = files(bundle.folder)
    report = quantize_automatically(bundle.folder, QuantizationInputs(images))
    assert report.chosen is None
    assert {candidate.verdict for candidate in report.candidates} == {"not faster than float"}
    assert files(bundle.folder) == before
    assert open_bundle(bundle.folder) == bundle


def test_nothing_is_added_that_loses_too_much(
    bundle: Bundle, images: list[Inputs], timed: Timed
) -> None:
    timed(dict.fromkeys(CANDIDATES, 2.0) | {"fp32-cpu": 1.0})
    sensitive = with_sensitive_head(bundle)
    report = quantize_automatically(sensitive.folder, QuantizationInputs(images), max_drop=99)
    assert report.chosen is None
    verdicts = {c.recipe.name: c.verdict for c in report.candidates}
    assert verdicts == dict.fromkeys(CANDIDATES[1:], "loses more than 99 % of tokens") | {
        "fp32-cpu": "not faster than float"
    }
    assert open_bundle(sensitive.folder) == sensitive


def test_wrong_requests_are_refused_before_any_evaluation(
    bundle: Bundle, images: list[Inputs], timed: Timed
) -> None:
    timed({})
    stages: list[str] = []
    with pytest.raises(UsageError) as caught:
        quantize_automatically(
            bundle.folder, QuantizationInputs(), progress=lambda name, *_: stages.append(name)
        )
    assert str(caught.value) == (
        "int8-cpu needs calibration samples; give --samples FOLDER, or --golden"
    )
    with pytest.raises(UsageError, match="variant fp32 would replace its own source"):
        quantize_automatically(
            bundle.folder,
            QuantizationInputs(images),
            name="fp32",
            progress=lambda name, *_: stages.append(name),
        )
    assert stages == []


@pytest.mark.parametrize("max_drop", [float("nan"), -1, "1"])
def test_a_budget_that_is_no_number_from_0_on(tiny_path: Path, max_drop: float) -> None:
    with pytest.raises(UsageError, match="max_drop must be a number from 0 on, got"):
        quantize_automatically(tiny_path, QuantizationInputs(golden=True), max_drop=max_drop)

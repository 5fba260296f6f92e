"""Tests the runner of the zoo: what it keeps, what its page says and its exit code."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.kept_results import Dated, KeptResults
from tests.models.zoo.__main__ import zoo
from tests.models.zoo.cases import find
from tests.models.zoo.check import AS_LISTED, REFUSED, Result, check_refusal
from tests.models.zoo.refusal import Refusal
from tests.models.zoo.refused import REFUSED as REFUSALS
from tests.models.zoo.runner.origin import ZooOrigin, zoo_origin
from tests.models.zoo.runner.page import page

ORIGIN = ZooOrigin("5" * 64, "one core", "torch 2", (24, 18), tensorrt=False)
KEPT = Result("fused", "handwritten", identical=9, tokens=9, older={18: "1.0e-06"}, seconds=60.0)


def test_a_kept_result_is_loaded_as_it_was(tmp_path: Path) -> None:
    kept = KeptResults(tmp_path, ORIGIN, Result).keep(KEPT.name, KEPT)
    assert KeptResults(tmp_path, ORIGIN, Result).load("fused") == kept
    assert KeptResults(tmp_path, ORIGIN, Result).load("einsum") is None
    assert KeptResults(None, ORIGIN, Result).load("fused") is None


@pytest.mark.parametrize(
    "change",
    [{"sources": "6" * 64}, {"machine": "two cores"}, {"packages": "torch 3"}, {"opsets": (24,)}],
)
def test_a_result_of_another_origin_is_not_joined(
    change: dict[str, object], tmp_path: Path
) -> None:
    KeptResults(tmp_path, ORIGIN, Result).keep(KEPT.name, KEPT)
    other = dataclasses.replace(ORIGIN, **change)  # type: ignore[arg-type]
    assert KeptResults(tmp_path, other, Result).load("fused") is None


def test_the_page_counts_models_refusals_and_those_that_are_missing() -> None:
    refusal = Result("no-mask", REFUSED, verdict=AS_LISTED, words="no causal mask")
    failing = Result("einsum", "handwritten", verdict="differs")
    text = page([Dated(r, "2026-11-28") for r in (KEPT, failing, refusal)], ORIGIN, 5)
    assert "1 of 2 models are ok: 9 tokens identical" in text
    assert "1 of 1 others are refused as listed" in text
    assert "2 of 5 models are not checked yet" in text
    assert ORIGIN.sources[:16] in text


@pytest.mark.parametrize(("verdict", "code"), [("ok", 0), ("differs", 1)])
def test_the_exit_code_tells_whether_every_model_is_ok(
    verdict: str, code: int, tmp_path: Path
) -> None:
    store = KeptResults(tmp_path, zoo_origin((24,), tensorrt=False), Result)
    store.keep("fused", dataclasses.replace(KEPT, older={}, verdict=verdict))
    run = CliRunner().invoke(zoo, ["fused", "--no-tensorrt", "--resume", str(tmp_path)])
    assert run.exit_code == code, run.output


def test_a_refusal_must_come_with_its_words() -> None:
    listed = REFUSALS[0]
    assert check_refusal(listed).verdict == AS_LISTED
    other = check_refusal(dataclasses.replace(listed, message="these words are not in it"))
    assert not other.ok and "lacks 'these words" in other.verdict
    assert "tests/models/" in (other.words or "")


@pytest.mark.slow
def test_a_model_that_exports_is_no_refusal() -> None:
    result = check_refusal(Refusal(find("multi-query"), "mask"))
    assert result.verdict == "exports, but must be refused"
    assert not result.ok

"""Tests a short form of `make fuzz-export`, and that it notices what it looks for."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import open_bundle
from tests.benchmarks.fuzz_export import __main__ as command
from tests.benchmarks.fuzz_export import check
from tests.benchmarks.fuzz_export.check import Outcome, Verdict, kind_of, outcome_of
from tests.benchmarks.fuzz_export.models import random_sample
from tests.benchmarks.fuzz_export.page import faults, page
from tests.benchmarks.fuzz_export.workers import check_all
from tests.fakes.edited_bundle import with_edited_weights

PLAIN = {
    "input": "features", "variant": "features", "form": "tensor", "positions": "table",
    "start_rows": "plain", "head": "linear", "sizes": "as_is", "mixer": "none",
    "encoder.act": "relu", "encoder.norm": "layer", "encoder.ffn": "two_linear",
    "0.norm0": "layer", "0.norm1": "layer", "0.norm2": "layer", "0.residual": "plain",
    "0.self": "sdpa", "0.mask": "tril", "0.bias": "none", "0.rotary": "no", "0.cross": "sdpa",
    "0.ffn": "two_linear", "0.act": "relu", "1.norm0": "layer", "1.norm1": "layer",
    "1.norm2": "layer", "1.residual": "plain", "1.self": "sdpa", "1.mask": "tril",
    "1.bias": "none", "1.rotary": "no", "1.cross": "sdpa", "1.ffn": "two_linear", "1.act": "relu",
}  # fmt: skip
"""Choices of a model that exports."""


def change_one_bias(path: Path) -> None:
    """Adds to the bias of one token in all graphs of a bundle."""

    def edit(name: str, array: NDArray[Any]) -> None:
        if name == "head.bias":
            array[0] += 0.01

    with_edited_weights(open_bundle(path), edit)


def test_a_seed_makes_the_same_model() -> None:
    first, second, other = random_sample(3), random_sample(3), random_sample(4)
    assert first.choices == second.choices != other.choices
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert a.equal(b)
    assert len({next(iter(inputs.values())).shape for inputs in first.batches}) > 1


def test_a_model_that_exports_is_right() -> None:
    outcome = outcome_of(0, PLAIN)
    assert (outcome.verdict, outcome.reason) == (Verdict.RIGHT, "")
    assert outcome.compared > 50


def test_a_wrong_bundle_is_noticed() -> None:
    outcome = outcome_of(0, PLAIN, change_one_bias)
    assert outcome.verdict is Verdict.WRONG
    assert "a logit differs by" in outcome.reason
    assert faults([outcome]) == [outcome]


def test_an_exception_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(check, "export_model", fail)
    outcome = outcome_of(0, PLAIN)
    assert outcome.verdict is Verdict.TRACEBACK
    assert outcome.reason.startswith("ZeroDivisionError: injected at test_fuzz.py:")
    assert faults([outcome]) == [outcome]


def test_a_refusal_is_no_fault() -> None:
    outcome = outcome_of(0, PLAIN | {"0.mask": "none", "1.mask": "none"})
    assert outcome.verdict is Verdict.REFUSED
    assert outcome.reason.startswith("UnsupportedModelError: ")
    assert not faults([outcome])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_random_models_are_right_or_refused(seed: int) -> None:
    outcome = outcome_of(seed)
    assert not faults([outcome]), outcome


def stub(seed: int) -> Outcome:
    """Ends its process at seed 1, and hangs at seed 2."""
    if seed == 1:
        os._exit(7)
    if seed == 2:
        time.sleep(600)
    return Outcome(seed, Verdict.RIGHT)


@pytest.mark.slow
def test_a_process_that_dies_or_hangs_costs_one_seed() -> None:
    outcomes = sorted(check_all(range(4), 1, 2.0, stub), key=lambda outcome: outcome.seed)
    assert [outcome.verdict for outcome in outcomes] == [
        Verdict.RIGHT,
        Verdict.TRACEBACK,
        Verdict.TIMEOUT,
        Verdict.RIGHT,
    ]
    assert outcomes[1].reason == "the process ended with code 7"


@pytest.mark.parametrize(
    ("verdict", "code"),
    [(Verdict.RIGHT, 0), (Verdict.REFUSED, 0), (Verdict.TIMEOUT, 0), (Verdict.WRONG, 1)],
)
def test_the_exit_code_tells_of_faults(
    verdict: Verdict, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = Outcome(5, verdict, "/x/y.py:12: a reason (of 3)", "norm=layer", 9)
    monkeypatch.setattr(command, "check_all", lambda *arguments: iter([outcome]))
    out = tmp_path / "page.md"
    result = CliRunner().invoke(command.main, ["--count", "1", "--out", str(out)])
    assert result.exit_code == code, result.output
    text = out.read_text()
    assert f"| {verdict.value} | 1 |" in text
    assert "python -m tests.benchmarks.fuzz_export --count 1 --seed 0 --jobs 2" in text
    assert ("a reason ()" in text) == (verdict is not Verdict.RIGHT)


def test_reasons_are_counted_without_their_numbers() -> None:
    outcomes = [
        Outcome(seed, Verdict.REFUSED, f"/x/y{seed}.py:{seed}: size {seed} (axis {seed}) differs")
        for seed in (7, 8)
    ]
    assert kind_of(outcomes[0].reason) == "size N () differs"
    assert "| refused | 2 | size N () differs | 7, 8 |" in page(outcomes, "command", 1)

"""Tests a short form of `make fuzz-export`, and that it notices what it looks for."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.export import exporter, pipeline
from hybrid_deploy.export.parity.parity import Parity
from hybrid_deploy.export.plan.causal_mask import CausalPattern
from tests.benchmarks.fuzz_export import __main__ as command
from tests.benchmarks.fuzz_export import check, compare
from tests.benchmarks.fuzz_export.check import (
    Outcome,
    Verdict,
    export_sample,
    judged_bundle,
    judged_refusal,
    kind_of,
    outcome_of,
)
from tests.benchmarks.fuzz_export.models import random_sample
from tests.benchmarks.fuzz_export.page import faults, page
from tests.benchmarks.fuzz_export.reference import BLIND, Flaw, flaws_of, jumps
from tests.benchmarks.fuzz_export.workers import check_all
from tests.benchmarks.fuzz_export.wrong import FAULTS
from tests.fakes.edited_bundle import with_edited_weights
from tests.kept_results import Dated, Origin

PLAIN = {
    "kind": "layers", "rows.0": "nothing", "rows.1": "nothing", "wrong": "none",
    "prefix.prefix": "causal", "varying": "yes", "input": "features",
    "variant": "features", "form": "tensor", "positions": "table",
    "start_rows": "plain", "head": "linear", "sizes": "as_is", "mixer": "none",
    "encoder.act": "relu", "encoder.norm": "layer", "encoder.ffn": "two_linear",
    "0.norm0": "layer", "0.norm1": "layer", "0.norm2": "layer", "0.residual": "plain",
    "0.self": "sdpa", "0.mask": "tril", "0.bias": "none", "0.rotary": "no", "0.cross": "sdpa",
    "0.ffn": "two_linear", "0.act": "relu", "1.norm0": "layer", "1.norm1": "layer",
    "1.norm2": "layer", "1.residual": "plain", "1.self": "sdpa", "1.mask": "tril",
    "1.bias": "none", "1.rotary": "no", "1.cross": "sdpa", "1.ffn": "two_linear", "1.act": "relu",
}  # fmt: skip
"""Choices of a model that exports."""


class Stairs(nn.Module):
    """Logits that rise by 1 where a weight of 2 + offset passes a whole number."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((5,), 2 + offset))

    def decode(self, tokens: Tensor) -> Tensor:
        return self.weight.floor().expand(*tokens.shape, -1)


@pytest.fixture(scope="module")
def plain_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported bundle of the model of `PLAIN`."""
    path = tmp_path_factory.mktemp("fuzz") / "plain.bundle"
    export_sample(random_sample(0, PLAIN), path)
    return path


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


def judged_plain(path: Path) -> Outcome:
    return judged_bundle(Outcome(0, Verdict.RIGHT), random_sample(0, PLAIN), path)


def test_a_right_bundle_is_right(plain_bundle: Path) -> None:
    outcome = judged_plain(plain_bundle)
    assert (outcome.verdict, outcome.reason) == (Verdict.RIGHT, "")
    assert outcome.compared > 50


def test_a_wrong_bundle_is_noticed(plain_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(plain_bundle, tmp_path / "wrong.bundle"))
    change_one_bias(path)
    outcome = judged_plain(path)
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


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "train"])
def test_every_fault_shows_in_the_numbers(fault: str) -> None:
    sample = random_sample(0, PLAIN | {"wrong": fault})
    flaws = flaws_of(sample.model, sample.batches, sample.vocabulary, sample.max_length)
    assert flaws - BLIND, fault


def test_a_mask_that_shows_later_tokens_to_the_first_one_looks_ahead() -> None:
    sample = random_sample(0, PLAIN | {"0.mask": "prefix"})
    flaws = flaws_of(sample.model, sample.batches, sample.vocabulary, sample.max_length)
    assert Flaw.LOOKS_AHEAD in flaws


def test_a_right_model_has_no_flaw() -> None:
    sample = random_sample(0, PLAIN)
    assert not flaws_of(sample.model, sample.batches, sample.vocabulary, sample.max_length)


def without_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks every check of an export that runs the model."""
    monkeypatch.setattr(exporter, "check_export", lambda *arguments: Parity())
    for name in ("check_causal", "check_batch"):
        monkeypatch.setattr(pipeline, name, lambda *arguments: None)


@pytest.mark.parametrize(("offset", "is_beside_a_jump"), [(0.0, True), (0.3, False)])
def test_rounding_errors_move_a_model_that_reads_a_value_beside_a_jump(
    offset: float, is_beside_a_jump: bool
) -> None:
    assert jumps(Stairs(offset).eval(), (), np.arange(3)) == is_beside_a_jump


def test_a_bundle_that_always_jumps_proves_nothing(
    plain_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "tolerance", lambda logits: -1.0)
    monkeypatch.setattr(compare, "jumps", lambda model, memory, tokens: True)
    outcome = judged_bundle(
        Outcome(0, Verdict.RIGHT, "", ""), random_sample(0, PLAIN), plain_bundle
    )
    assert outcome.verdict is Verdict.UNUSABLE
    assert "rounding errors alone" in outcome.reason


@pytest.mark.slow
def test_a_wrong_mask_is_noticed_without_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gate(monkeypatch)
    right = CausalPattern.of
    monkeypatch.setattr(CausalPattern, "of", lambda self, mask: right(self, mask.roll(1, -1)))
    outcome = outcome_of(0, PLAIN | {"0.self": "matmul", "1.self": "matmul"})
    assert outcome.verdict is Verdict.WRONG, outcome
    assert "differs by" in outcome.reason or "instead of" in outcome.reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("noise", "random"),
        ("list_in_self", "random"),
        ("encode_batch_mean", "mixes the batch"),
        ("batch_size", "mixes the batch"),
        ("share_of_length", "differs by"),
    ],
)
def test_a_fault_is_noticed_without_the_gate(
    fault: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gate(monkeypatch)
    outcome = outcome_of(0, PLAIN | {"wrong": fault})
    if outcome.verdict is Verdict.REFUSED:  # by the analysis: no check that runs the model
        assert outcome.reason.startswith("UnsupportedModelError: ")
        return
    assert outcome.verdict is Verdict.WRONG, outcome
    assert words in outcome.reason or "instead of" in outcome.reason


@pytest.mark.parametrize(
    ("reason", "flaws", "verdict"),
    [
        ("ParityError: the exported graphs differ", set(), Verdict.FALSE_REFUSAL),
        ("ParityError: the exported graphs differ", {Flaw.KNOWS_LENGTH}, Verdict.REFUSED),
        ("BackendError: onnxruntime failed in the step graph", set(), Verdict.FALSE_REFUSAL),
        ("decode() is not causal", {Flaw.RANDOM}, Verdict.FALSE_REFUSAL),
        ("decode() is not causal", {Flaw.LOOKS_AHEAD}, Verdict.REFUSED),
        ("the mask lets a token see the tokens after it", set(), Verdict.FALSE_REFUSAL),
        ("encode() mixes the inputs of a batch", set(), Verdict.FALSE_REFUSAL),
        ("the model itself fails on inputs", set(), Verdict.FALSE_REFUSAL),
        ("/a/check.py:12: takes one size only", {Flaw.FAILS}, Verdict.FALSE_REFUSAL),
        ("/a/rows.py:12: this operator", set(), Verdict.REFUSED),
        ("/a/rows.py:9: decode() fails: TypeError", set(), Verdict.FALSE_REFUSAL),
        ("other values in a second run on the same values", set(), Verdict.FALSE_REFUSAL),
        ("decode() returns other logits for 3 tokens", set(), Verdict.FALSE_REFUSAL),
        ("decode() returns other logits for 3", {Flaw.KNOWS_LENGTH}, Verdict.REFUSED),
        ("an internal step failed with KeyError", {Flaw.FAILS}, Verdict.INTERNAL),
        ("step() has no ONNX form: s37", {Flaw.FAILS}, Verdict.INTERNAL),
        ("step() has no ONNX form: no translation for the operator aten.f", set(), Verdict.REFUSED),
    ],
)
def test_a_refusal_has_to_be_true(reason: str, flaws: set[Flaw], verdict: Verdict) -> None:
    assert judged_refusal(reason, flaws)[0] is verdict


def test_a_model_that_reacts_to_nothing_is_not_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "flaws_of", lambda *arguments: {Flaw.IGNORES_PAST})
    outcome = judged_plain(tmp_path)
    assert outcome.verdict is Verdict.UNUSABLE
    assert outcome.reason == "the model ignores the past"


def test_a_run_of_refusals_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [Outcome(seed, Verdict.REFUSED) for seed in range(3)] + [Outcome(3, Verdict.RIGHT)]
    monkeypatch.setattr(command, "check_all", lambda *arguments: iter(outcomes))
    result = CliRunner().invoke(command.main, ["--count", "4"])
    assert result.exit_code == 1
    assert "only 1 of 4 models are right" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11002, 11017, *range(8)])
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
    [
        (Verdict.RIGHT, 0),
        (Verdict.TIMEOUT, 1),
        (Verdict.WRONG, 1),
        (Verdict.FALSE_REFUSAL, 1),
        (Verdict.INTERNAL, 1),
    ],
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
    checked = [Dated(outcome, f"2026-11-2{outcome.seed}") for outcome in outcomes]
    text = page(checked, "command", Origin("5" * 64, "two cores", "torch 2"))
    assert "| refused | 2 | size N () differs | 7, 8 |" in text
    assert "2026-11-27 to 2026-11-28" in text


def test_a_run_checks_only_the_models_that_an_earlier_one_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[list[int]] = []

    def answered(seeds: list[int], *_: object) -> Iterator[Outcome]:
        asked.append(list(seeds))
        return (
            Outcome(seed, Verdict.TIMEOUT if seed == 1 else Verdict.RIGHT, compared=50)
            for seed in seeds
        )

    monkeypatch.setattr(command, "check_all", answered)
    out = tmp_path / "page.md"
    for count in ("2", "3"):
        arguments = ["--count", count, "--resume", str(tmp_path / "kept"), "--out", str(out)]
        assert CliRunner().invoke(command.main, arguments).exit_code == 1
    assert asked == [[0, 1], [1, 2]], "a model that took too long is tried again"
    assert "3 models, 150 rows" in out.read_text()

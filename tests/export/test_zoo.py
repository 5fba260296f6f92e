"""Tests the zoo: ordinary models become incremental decoders, or are refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid_deploy.errors import UnsupportedModelError
from tests.models.zoo.case import Case
from tests.models.zoo.cases import all_cases, all_refusals
from tests.models.zoo.check import check_case, compare_bundle, export
from tests.models.zoo.eager import EagerBackend
from tests.models.zoo.published.refused import REFUSED as PUBLISHED_REFUSED
from tests.models.zoo.reference import (
    LEAST_DISTINCT,
    Comparison,
    compare,
    greedy,
    scenarios,
)
from tests.models.zoo.refusal import Refusal
from tests.models.zoo.refused import REFUSED

EAGER_FAMILIES = (
    "torch",
    "handwritten",
    "prefix",
    "image",
    "signal",
    "padded",
    "image-before-text",
)
PUBLISHED = tuple(
    f"published-{task}" for task in ("readers", "captioners", "speech", "translation", "language")
)
CASES = tuple(
    case
    for families, first, step in ((EAGER_FAMILIES, 0, 6), (PUBLISHED, 2, 4))
    for index, case in enumerate(all_cases(families))
    if case.fast or index % step == first
)
"""Some models of every family, since tracing takes seconds; `make zoo` checks all."""

EXPORTED = [case for case in CASES if case.fast]
REFUSALS = (*REFUSED, *PUBLISHED_REFUSED)
STEPS = 12  # enough for every prompt and some tokens that are fed back


def name_of(case: Case | Refusal) -> str:
    return case.name


def assert_identical(comparison: Comparison) -> None:
    assert comparison.identical == comparison.tokens > 0, comparison
    assert comparison.close, comparison


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_every_step_equals_the_full_run(case: Case) -> None:
    model = case.model()
    check_case(case, model)
    chosen = scenarios(case)[-1:]  # prompts of unequal lengths, at the last input size
    assert_identical(compare(case, model, EagerBackend(case, model).start, chosen, STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("case", EXPORTED, ids=name_of)
def test_exported_graphs_equal_the_full_run(case: Case, tmp_path: Path) -> None:
    model = case.model()
    comparison = compare_bundle(case, model, export(case, model, tmp_path / "bundle"))
    assert_identical(comparison)
    assert comparison.distinct >= LEAST_DISTINCT


@pytest.mark.parametrize("refusal", REFUSALS, ids=name_of)
def test_models_without_an_incremental_form_are_refused(refusal: Refusal, tmp_path: Path) -> None:
    case = refusal.case
    with pytest.raises(UnsupportedModelError) as caught:
        export(case, case.model(), tmp_path / "bundle")
    message = str(caught.value)
    missing = refusal.missing(message)
    assert missing is None, f"{missing} is not in: {message}"
    assert not (tmp_path / "bundle").exists()


def test_a_wrong_decoder_is_noticed() -> None:
    """The comparison can fail: a model with other weights decodes other tokens."""
    case = EXPORTED[0]
    other_weights = case.model(seed=1)
    comparison = compare(case, other_weights, EagerBackend(case, case.model()).start, steps=STEPS)
    assert comparison.identical < comparison.tokens
    assert not comparison.passed


def test_greedy_decoding_feeds_its_own_tokens_back() -> None:
    case = EXPORTED[0]
    model, inputs = case.model(), case.inputs(1, case.sizes[0])
    tokens, logits = greedy(model, inputs, [1], 6)
    again, _ = greedy(model, inputs, [1, *tokens[:3].tolist()], 3)
    assert tokens[3:].tolist() == again.tolist()
    assert logits.argmax(-1).tolist() == tokens.tolist()


def test_the_names_of_the_models_are_unique() -> None:
    names = [model.name for model in all_cases()]
    names += [refusal.name for refusal in all_refusals()]
    assert len(set(names)) == len(names)

"""The zoo: ordinary models become incremental decoders, or are refused with a reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hybrid_deploy.errors import UnsupportedModelError
from tests.models.zoo.case import Case
from tests.models.zoo.cases import all_cases
from tests.models.zoo.check import check_case, compare_bundle, export
from tests.models.zoo.eager import EagerBackend
from tests.models.zoo.reference import (
    LEAST_DISTINCT,
    Comparison,
    compare,
    greedy,
    scenarios,
)
from tests.models.zoo.refused import REFUSALS, Refusal

EAGER_FAMILIES = ("torch", "handwritten", "prefix", "image", "signal", "padded")
CASES = tuple(
    case for index, case in enumerate(all_cases(EAGER_FAMILIES)) if case.fast or index % 6 == 0
)
"""Some of every family: tracing takes seconds. `make zoo` goes through all."""

EXPORTED = [case for case in CASES if case.fast]
STEPS = 12  # enough to pass every prompt and to feed tokens back


def named(case: Case | Refusal) -> str:
    return case.name


def assert_identical(comparison: Comparison) -> None:
    assert comparison.identical == comparison.tokens > 0, comparison
    assert comparison.close, comparison


@pytest.mark.parametrize("case", CASES, ids=named)
def test_every_step_equals_the_full_run(case: Case) -> None:
    model = case.model()
    check_case(case, model)
    chosen = scenarios(case)[-1:]  # unequal prompts; the second size, if there is one
    assert_identical(compare(case, model, EagerBackend(case, model).start, chosen, STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("case", EXPORTED, ids=named)
def test_exported_graphs_equal_the_full_run(case: Case, tmp_path: Path) -> None:
    model = case.model()
    comparison = compare_bundle(case, model, export(case, model, tmp_path / "bundle"))
    assert_identical(comparison)
    assert comparison.distinct >= LEAST_DISTINCT


@pytest.mark.parametrize("refusal", REFUSALS, ids=named)
def test_what_cannot_be_incremental_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    case = refusal.case
    with pytest.raises(UnsupportedModelError) as caught:
        export(case, case.model(), tmp_path / "bundle")
    message = str(caught.value)
    assert re.search(refusal.message, message), message
    if refusal.line is not None:
        assert re.search(refusal.place(), message), f"{refusal.place()} is not in: {message}"
    assert not (tmp_path / "bundle").exists()


def test_a_wrong_decoder_is_noticed() -> None:
    """The comparison can fail: a model is not equal to its sister with other weights."""
    case = EXPORTED[0]
    sister = case.model(seed=1)
    comparison = compare(case, sister, EagerBackend(case, case.model()).start, steps=STEPS)
    assert comparison.identical < comparison.tokens
    assert not comparison.passed


def test_greedy_decoding_feeds_its_own_tokens_back() -> None:
    case = EXPORTED[0]
    model, inputs = case.model(), case.inputs(1, case.sizes[0])
    tokens, logits = greedy(model, inputs, [1], 6)
    again, _ = greedy(model, inputs, [1, *tokens[:3].tolist()], 3)
    assert tokens[3:].tolist() == again.tolist()
    assert logits.argmax(-1).tolist() == tokens.tolist()


def test_the_names_are_unique() -> None:
    names = [case.name for case in all_cases(EAGER_FAMILIES)]
    assert len(set(names)) == len(names)

"""Tests that operators which treat tokens one by one are admitted, however they are written."""

from __future__ import annotations

import pytest

from hybrid_deploy.errors import UnsupportedModelError
from tests.models.spellings.cases import MAX_LENGTH, MIXING, SPELLINGS
from tests.models.zoo.case import Case
from tests.models.zoo.check import check_case
from tests.models.zoo.eager import EagerBackend
from tests.models.zoo.reference import compare


@pytest.mark.parametrize("case", SPELLINGS, ids=lambda case: case.name)
def test_every_step_equals_the_module(case: Case) -> None:
    model = case.model()
    check_case(case, model)
    comparison = compare(case, model, EagerBackend(case, model).start, steps=MAX_LENGTH)
    assert comparison.identical == comparison.tokens > 0, comparison
    assert comparison.close, comparison


@pytest.mark.parametrize(("case", "message"), MIXING, ids=[case.name for case, _ in MIXING])
def test_operators_that_mix_tokens_or_sequences_are_refused(case: Case, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        EagerBackend(case, case.model())
    assert "spellings/" in str(caught.value)

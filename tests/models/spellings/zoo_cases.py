"""The spellings as cases of the zoo: longer sequences than in their own test, on all backends."""

from __future__ import annotations

from dataclasses import replace

from tests.models.spellings.cases import MIXING, SPELLINGS
from tests.models.zoo.refusal import Refusal

_SEEDS = {"joined-infinities": 2}  # with seed 0 it repeats a token
SPELLED = tuple(
    replace(case, max_length=72, seed=_SEEDS.get(case.name, case.seed)) for case in SPELLINGS
)
REFUSED = tuple(Refusal(case, message) for case, message in MIXING)

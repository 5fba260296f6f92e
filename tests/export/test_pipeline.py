"""Tests the special tokens of models whose embedding is larger than their head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.errors import UsageError
from hybrid_deploy.export.exporter import export_model
from hybrid_deploy.runtime.session.session import load_session
from tests.models.spellings.decoders import Spelled
from tests.models.zoo.captioner import FEATURES, VOCABULARY, WIDTH
from tests.models.zoo.case import Case, random_floats
from tests.models.zoo.reference import greedy

BOS, PAD, NEVER_CHOSEN = VOCABULARY - 2, VOCABULARY - 1, 2


class NarrowHead(Spelled):
    """PARSeq's vocabulary: <bos> and <pad> are embedded and never predicted.

    Args:
        indexed: whether a table is indexed in place of an embedding.
        picked: whether the first token is picked before it is embedded.
    """

    def __init__(self, *, indexed: bool = False, picked: bool = False) -> None:
        super().__init__()
        self.indexed, self.picked = indexed, picked
        self.head = nn.Linear(WIDTH, VOCABULARY - NEVER_CHOSEN)

    def embed(self, tokens: Tensor) -> Tensor:
        if self.picked:
            return torch.cat([self.embedding(tokens[:, :1]), self.embedding(tokens[:, 1:])], 1)
        return self.pair[tokens] if self.indexed else super().embed(tokens)


def case_of(**options: bool) -> Case:
    return Case(
        name="narrow-head",
        family="spelling",
        make=lambda: NarrowHead(**options),
        inputs=lambda batch, size: {"features": random_floats(batch, size, FEATURES)},
        sizes=(5,),
    )


@pytest.mark.parametrize("option", ["indexed", "picked", None])
def test_start_and_pad_tokens_may_exist_as_inputs_only(tmp_path: Path, option: str | None) -> None:
    case = case_of() if option is None else case_of(**{option: True})
    model, inputs, out = case.model(), case.inputs(2, 5), tmp_path / "out.bundle"
    export_model(model, inputs, out, max_length=8, start_tokens=BOS, pad_token=PAD)
    results, _ = load_session(out).run_arrays({"features": inputs["features"].numpy()})
    for row, result in enumerate(results):
        alone = {"features": inputs["features"][row : row + 1]}
        expected, _ = greedy(model, alone, [BOS], 7)
        assert list(result.tokens) == expected.tolist()


def test_end_tokens_have_to_be_in_the_logits(tmp_path: Path) -> None:
    model = case_of().model()
    features = torch.zeros(2, 5, FEATURES)
    tokens: tuple[tuple[dict[str, Any], str], ...] = (
        ({"end_tokens": BOS}, "end token 95 is outside the 95 tokens .* logits hold"),
        ({"start_tokens": VOCABULARY}, "start token 97 is outside the 97 tokens .* reads"),
        ({"pad_token": VOCABULARY}, "pad token 97 is outside the 97 tokens .* reads"),
    )
    for token, message in tokens:
        with pytest.raises(UsageError, match=message):
            export_model(model, features, tmp_path / "out", max_length=8, **token)

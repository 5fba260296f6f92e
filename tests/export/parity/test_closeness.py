"""Tests what difference the gate accepts between the outputs of one step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.errors import ParityError
from hybrid_deploy.export.parity.closeness import Closeness, ComparedStep
from hybrid_deploy.export.parity.float32_error import LEAST_SHARE, own_error
from hybrid_deploy.export.parity.parity import Parity

WIDTH, VOCABULARY, EXACT_TOKEN = 1000, 7, 0
MEMORY = {"memory": np.ones((1, 1, 1), np.float32)}


class LongSums(nn.Module):
    """Logits are sums of 1,000 products, but for the token whose products are 0 but one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        with torch.no_grad():
            self.embedding.weight[EXACT_TOKEN] = nn.functional.one_hot(torch.tensor(3), WIDTH)
            self.embedding.weight[1:] += 100 * torch.randn(VOCABULARY - 1, 1)

    def encode(self, memory: Tensor) -> Tensor:
        return memory

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(tokens))
        return logits


@pytest.mark.parametrize(("share", "is_right"), [(2.0, True), (1000.0, False)])
def test_a_token_whose_error_is_small_by_chance_is_no_measure(share: float, is_right: bool) -> None:
    torch.manual_seed(0)
    model = LongSums().eval()
    tokens = np.full((1, 1), EXACT_TOKEN)
    assert own_error(model, MEMORY, tokens) == [0.0]
    with torch.no_grad():
        logits = model.decode(torch.from_numpy(tokens), torch.ones(1, 1, 1))[:, -1].numpy()
    off = logits + np.float32(share * LEAST_SHARE * np.abs(logits).max())
    step = ComparedStep(np.array([1]), np.array([True]), (off,))
    closeness = Closeness(model, MEMORY, "one token", Parity())
    if is_right:
        assert not closeness.check(step, (logits,), tokens).any()
    else:
        with pytest.raises(ParityError, match="one token, sequence 0, after 1 tokens"):
            closeness.check(step, (logits,), tokens)

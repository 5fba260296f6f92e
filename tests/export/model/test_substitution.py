"""Replacing submodules: what is shared, what is left alone, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.model.substitution import shared_copy, substitute
from tests.closeness import assert_close_in_float32

WIDTH = 4


class Doubled(nn.Module):
    """Stands for a linear layer."""

    def __init__(self, old: nn.Module) -> None:
        super().__init__()
        self.old = old

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = 2 * self.old(x)
        return y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.norm = nn.BatchNorm1d(WIDTH)
        self.second = self.third = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.third(self.second(self.norm(self.first(x))))
        return y


def test_a_path_is_replaced_in_a_copy_that_shares_the_weights() -> None:
    net, x = Net().eval(), torch.randn(3, WIDTH)
    changed = substitute(net, {"first.0": Doubled})
    wanted = net.third(net.second(net.norm(2 * net.first(x))))
    assert_close_in_float32(changed(x), wanted)
    assert isinstance(net.first[0], nn.Linear)
    with torch.no_grad():
        net.first[0].weight.zero_()
        net.norm.get_buffer("running_mean").add_(1)
    assert_close_in_float32(changed.first[0](x), 2 * net.first[0](x))
    assert_close_in_float32(changed.norm(x), net.norm(x))
    assert not changed.training and not changed.first[0].training


def test_a_class_is_replaced_wherever_it_is_and_once_where_it_is_shared() -> None:
    changed = substitute(Net(), {nn.Linear: Doubled})
    assert isinstance(changed.first[0], Doubled) and isinstance(changed.second, Doubled)
    assert changed.second is changed.third
    assert isinstance(changed.second.old, nn.Linear), "what is inside a replacement is kept"


def test_a_path_goes_before_a_class() -> None:
    changed = substitute(Net(), {nn.Linear: Doubled, "first.0": lambda old: nn.Identity()})
    assert isinstance(changed.first[0], nn.Identity) and isinstance(changed.second, Doubled)


def test_a_copy_changes_alone() -> None:
    net = Net()
    copy = shared_copy(net)
    copy.first = nn.Sequential()
    assert len(net.first) == 2
    assert next(copy.parameters()) is net.norm.weight


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Net has no module head to replace"):
        substitute(Net(), {"head": Doubled})
    with pytest.raises(UnsupportedModelError, match=r"Net has no module Conv1d to replace"):
        substitute(Net(), {nn.Conv1d: Doubled})

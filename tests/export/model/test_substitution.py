"""Tests that a copy with replaced modules shares weights and leaves the original unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.model.substitution import shared_copy, substitute
from tests.closeness import assert_close_in_float32

WIDTH = 4


class Doubled(nn.Module):
    """Doubles the output of the module that it replaces."""

    def __init__(self, old: nn.Module) -> None:
        super().__init__()
        self.old = old

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = 2 * self.old(x)
        return y


class Net(nn.Module):
    """Three linear layers, of which two are one module."""

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
    expected = net.third(net.second(net.norm(2 * net.first(x))))
    assert_close_in_float32(changed(x), expected)
    assert isinstance(net.first[0], nn.Linear)
    with torch.no_grad():
        net.first[0].weight.zero_()
        net.norm.get_buffer("running_mean").add_(1)
    assert_close_in_float32(changed.first[0](x), 2 * net.first[0](x))
    assert_close_in_float32(changed.norm(x), net.norm(x))
    assert not changed.training and not changed.first[0].training


def test_every_module_of_a_class_is_replaced_and_a_shared_one_once() -> None:
    changed = substitute(Net(), {nn.Linear: Doubled})
    assert isinstance(changed.first[0], Doubled) and isinstance(changed.second, Doubled)
    assert changed.second is changed.third
    assert isinstance(changed.second.old, nn.Linear), (
        "modules inside a replacement are not replaced"
    )


def test_a_path_takes_precedence_over_a_class() -> None:
    changed = substitute(Net(), {nn.Linear: Doubled, "first.0": lambda old: nn.Identity()})
    assert isinstance(changed.first[0], nn.Identity) and isinstance(changed.second, Doubled)


def test_a_change_of_the_copy_does_not_change_the_original() -> None:
    net = Net()
    copy = shared_copy(net)
    copy.first = nn.Sequential()
    assert len(net.first) == 2
    assert next(copy.parameters()) is net.norm.weight


def test_a_missing_path_or_class_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Net has no module head to replace"):
        substitute(Net(), {"head": Doubled})
    with pytest.raises(UnsupportedModelError, match=r"Net has no module Conv1d to replace"):
        substitute(Net(), {nn.Conv1d: Doubled})

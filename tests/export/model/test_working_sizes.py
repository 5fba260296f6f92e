"""Models that fail at sizes between multiples are exported for the multiples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.bundle.manifest import DimRange
from hybrid_deploy.export.model.dynamic_axes import DynamicAxes, DynamicAxis, declared_ranges
from hybrid_deploy.export.model.working_sizes import narrowing_remarks, working_sizes


class Patches(nn.Module):
    """An encoder that fails at a width that is no multiple of its patch."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def encode(self, image: Tensor) -> Tensor:
        return image.reshape(len(image), -1, self.patch)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        return memory.mean(1)[:, None].expand(*tokens.shape, -1)


class Joined(Patches):
    """A model whose decode() fails at a width that is no multiple of its patch."""

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        return super().decode(tokens, super().encode(memory))


class Failing(Patches):
    """An encoder that fails at every size but that of its example."""

    def encode(self, image: Tensor) -> Tensor:
        return image.view(len(image), 2, 48)


def axes(smallest: int, largest: int, multiple: int = 1) -> DynamicAxes:
    return {"image": {2: DynamicAxis("width", DimRange(smallest, 96, largest, multiple))}}


@pytest.mark.parametrize(
    ("patch", "declared", "multiple"),
    [
        (1, axes(16, 512), 1),
        (8, axes(16, 512), 8),
        (6, axes(12, 504), 6),
        (8, axes(16, 512, 4), 8),
        (8, axes(16, 512, 16), 16),
        (8, axes(10, 512), 1),  # the smallest size fails: the export refuses it with its own words
        (32, axes(32, 96), 1),  # three sizes are no range
    ],
)
def test_the_least_multiple_at_which_the_model_works(
    patch: int, declared: DynamicAxes, multiple: int
) -> None:
    image = {"image": torch.zeros(2, 1, 96)}
    narrowed = working_sizes(Patches(patch).eval(), image, declared)
    before, after = declared_ranges(declared)["width"], declared_ranges(narrowed)["width"]
    assert after == DimRange(before.min, 96, before.max, multiple)
    remarks = narrowing_remarks(declared, narrowed)
    assert len(remarks) == (multiple != before.multiple)
    assert all(f"multiples of {multiple} from {before.min} to" in remark for remark in remarks)


def test_decode_has_to_work_too() -> None:
    image = {"image": torch.zeros(2, 1, 96)}
    narrowed = working_sizes(Joined(8).eval(), image, axes(16, 512))
    assert declared_ranges(narrowed)["width"].multiple == 8


def test_a_model_that_fails_everywhere_keeps_its_range() -> None:
    declared = axes(16, 512)
    image = {"image": torch.zeros(1, 1, 96)}
    assert working_sizes(Failing(1).eval(), image, declared) == declared

"""Python branches on varying sizes: proved over the declared sizes, or refused with their line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_deploy.bundle.manifest import DimRange
from hybrid_deploy.errors import HybridDeployError, UnsupportedModelError
from hybrid_deploy.export.lowering.torch_to_onnx import onnx_from_torch
from hybrid_deploy.export.model.dynamic_axes import DynamicAxis
from hybrid_deploy.export.model.memory_sizes import memory_sizes
from hybrid_deploy.export.trace.capture import capture_decoder
from hybrid_deploy.export.trace.size_guards import CHECKED_BATCHES, DeclaredSizes

WIDTHS = range(32, 257)


class Encoder(nn.Module):
    """Patches of 8x8 after a function of the image."""

    def __init__(self, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 8, 8)
        self.prepare = prepare

    def forward(self, image: Tensor) -> Tensor:
        return self.encode(image)

    def encode(self, image: Tensor) -> Tensor:
        """Returns (batch, patches, 4)."""
        memory: Tensor = self.patches(self.prepare(image))
        return memory.flatten(2).transpose(1, 2)


def pad_if_needed(x: Tensor) -> Tensor:
    pad = -x.shape[3] % 8
    if pad:
        x = F.pad(x, (0, pad))
    return x


def pad_always(x: Tensor) -> Tensor:
    return F.pad(x, (0, -x.shape[3] % 8))


def turn_if_tall(x: Tensor) -> Tensor:
    if x.shape[2] > x.shape[3]:
        return x.transpose(2, 3)
    return x


def halve_if_wide(x: Tensor) -> Tensor:
    if x.shape[3] > 200:
        return x[:, :, :, ::2]
    return x


def scale_if_single(x: Tensor) -> Tensor:
    if x.shape[0] == 1:
        return x * 2
    return x


def only_64(x: Tensor) -> Tensor:
    if x.shape[3] == 64:
        return x
    return x * 2


def narrow_enough(x: Tensor) -> Tensor:
    if x.shape[3] > 256 or x.shape[0] < 1:
        raise ValueError("too wide")
    return x


def cut_by_float(x: Tensor) -> Tensor:
    return x[..., : math.trunc(x.shape[3] * 0.7)]


def rounded(x: Tensor) -> Tensor:
    return x[..., : round(x.shape[3] * 0.7)]


def scaled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=(1.0, 0.7))


def halved(x: Tensor) -> Tensor:
    return F.interpolate(x[..., : round(x.shape[3] * 0.75)], scale_factor=0.5)


def cut_by_third(x: Tensor) -> Tensor:
    return x[..., : round(x.shape[3] / 3)]


def line_of(function: Callable[..., Any], offset: int) -> str:
    return f"{__file__}:{inspect.getsourcelines(function)[1] + offset}"


def trace(
    prepare: Callable[[Tensor], Tensor],
    widths: Sequence[int] = WIDTHS,
    heights: Sequence[int] | None = None,
    example: int = 64,
) -> tuple[Any, DeclaredSizes]:
    declared = DeclaredSizes({"batch": CHECKED_BATCHES, "width": widths})
    axes = {0: "batch", 3: "width"}
    if heights is not None:
        declared.ranges["height"] = heights  # type: ignore[index]
        axes[2] = "height"
    image = torch.zeros(2, 1, 32, example)
    graph = onnx_from_torch(
        Encoder(prepare), {"image": image}, ["memory"], {"image": axes}, 24, declared, "encode()"
    )
    return graph, declared


@pytest.mark.parametrize(
    ("prepare", "offset", "texts"),
    [
        (
            pad_if_needed,
            2,
            ["width 33 takes the other one", "torch.where", "keeps width a multiple of 8"],
        ),
        (halve_if_wide, 1, ["width <= 200", "width 201", "narrow the range"]),
        (scale_if_single, 1, ["batch 1 takes the other one"]),
        (only_64, 1, ["one size only of width"]),
    ],
)
def test_a_branch_is_refused_with_its_line(
    prepare: Callable[[Tensor], Tensor], offset: int, texts: list[str]
) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        trace(prepare)
    message = str(caught.value)
    assert message.startswith(f"{line_of(prepare, offset)}: ")
    assert all(text in message for text in texts), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("prepare", "text"),
    [
        (cut_by_float, "at width 90 it gets 63 in place of 62"),
        (rounded, "at width 45 it gets 32 in place of 31"),
        (scaled, "at width 90 it gets 63 in place of 62"),
    ],
)
def test_a_size_that_float32_rounds_otherwise_is_refused(
    prepare: Callable[[Tensor], Tensor], text: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=text) as caught:
        trace(prepare)
    assert str(caught.value).startswith(f"{line_of(prepare, 1)}: ")
    trace(prepare, [32, 33, 64, 100])  # sizes that float32 rounds as float64 does


@pytest.mark.parametrize("widths", [WIDTHS, range(32, 2049, 8)])
def test_a_size_that_float32_rounds_alike_is_accepted(widths: Sequence[int]) -> None:
    trace(halved, widths)


def test_a_line_of_the_caller_is_never_named() -> None:
    """A size that a trace asks for after the model has run belongs to no line of the model."""
    with pytest.raises(HybridDeployError) as caught:
        trace(cut_by_third)
    lines, first = inspect.getsourcelines(trace)
    assert not any(f"{__file__}:{first + n}:" in str(caught.value) for n in range(len(lines)))


def test_a_branch_on_two_sizes_is_refused() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        trace(turn_if_tall, heights=range(32, 129))
    assert str(caught.value).startswith(f"{line_of(turn_if_tall, 1)}: a Python branch of encode()")


@pytest.mark.parametrize("prepare", [pad_always, narrow_enough])
def test_what_holds_at_every_declared_size_is_accepted(
    prepare: Callable[[Tensor], Tensor],
) -> None:
    graph, _ = trace(prepare)
    assert str(graph.graph.inputs[0].shape[3]) == "width"


def test_a_branch_that_holds_in_a_narrower_range_is_accepted() -> None:
    trace(halve_if_wide, widths=range(32, 201))


def test_a_branch_that_holds_for_a_multiple_is_accepted() -> None:
    graph, _ = trace(pad_if_needed, widths=range(32, 257, 8))
    assert [str(dim) for dim in graph.graph.inputs[0].shape] == ["batch", "1", "32", "width"]
    texts = {str(d) for n in graph.graph for v in n.outputs for d in v.shape or ()}
    assert any("width//8" in text for text in texts)
    assert not any("_blocks" in text or "s6" in text for text in texts)


def test_sizes_at_which_an_operator_assumed_something_are_returned() -> None:
    _, declared = trace(lambda x: x, widths=range(4, 65))
    assert declared.uncertain == [{"width": 4}]  # narrower than the convolution


class Decoder(nn.Module):
    """A decoder that adds a mean of the memory, in blocks of 4 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)

    def forward(self, tokens: Tensor, *tensors: Tensor) -> tuple[Tensor]:
        """Returns the logits, (batch, length, 4)."""
        (memory,) = tensors
        pad = -memory.shape[1] % 4
        if pad:
            memory = F.pad(memory, (0, 0, 0, pad))
        return (self.embedding(tokens) + memory.mean(1, keepdim=True),)


@pytest.mark.parametrize(("sizes", "refused"), [(range(4, 33), True), (range(4, 33, 4), False)])
def test_a_branch_of_the_decoder_on_the_memory(sizes: Sequence[int], refused: bool) -> None:
    def capture() -> None:
        memory = (torch.zeros(2, 8, 4),)
        capture_decoder(Decoder().eval(), memory, ((1,),), 6, lambda: {(0, 1): sizes})

    if not refused:
        capture()
        return
    with pytest.raises(UnsupportedModelError) as caught:
        capture()
    assert str(caught.value).startswith(f"{line_of(Decoder.forward, 4)}: a Python branch of decode")
    assert "memory.shape[1] 5" in str(caught.value)


class Patches(nn.Module):
    """A model whose memory has four rows for each patch column."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(pad_always)

    def encode(self, image: Tensor) -> Tensor:
        """Returns the memory, (batch, rows, 4)."""
        memory: Tensor = self.encoder(image)
        return memory


def test_the_sizes_of_the_memory_follow_from_those_of_the_inputs() -> None:
    axes = {"image": {3: DynamicAxis("width", DimRange(32, 64, 72))}}
    sizes = memory_sizes(Patches().eval(), {"image": torch.zeros(2, 1, 32, 64)}, axes)
    assert sizes[0, 1] == [16, 20, 24, 28, 32, 36]

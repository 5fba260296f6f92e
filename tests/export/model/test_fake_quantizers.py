"""Models that were trained with fake quantization keep their scales in the export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
    disable_fake_quant,
)

from hybrid_deploy import load_session
from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export import export_model
from hybrid_deploy.export.model.fake_quantizers import (
    FrozenFakeQuantize,
    with_frozen_fake_quantizers,
)
from hybrid_deploy.export.trace.portable_ops import PortableOps

WIDTH, WORDS = 16, 12


class TrainedForQuantization(nn.Module):
    """A reader with one activation of 8 bits in each part, and a head of 4-bit weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(1, WIDTH, 4, 4)
        self.tokens = nn.Embedding(WORDS, WIDTH)
        self.positions = nn.Parameter(torch.randn(16, WIDTH))
        layer = nn.TransformerDecoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 1)
        self.head = nn.Linear(WIDTH, WORDS)
        self.image_8_bits = FusedMovingAvgObsFakeQuantize(
            observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8
        )
        self.weight_4_bits = FakeQuantize(  # type: ignore[no-untyped-call]
            observer=PerChannelMinMaxObserver, quant_min=-8, quant_max=7, dtype=torch.qint8,
            qscheme=torch.per_channel_symmetric, ch_axis=0,
        )  # fmt: skip

    def encode(self, image: Tensor) -> Tensor:
        rows: Tensor = self.patches(self.image_8_bits(image)).flatten(2).transpose(1, 2)
        return rows

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        length = tokens.shape[1]
        rows = self.tokens(tokens) + self.positions[:length]
        mask = torch.full((length, length), float("-inf")).triu(1)
        rows = self.decoder(rows, memory, tgt_mask=mask)
        rows = torch.fake_quantize_per_tensor_affine(rows, 0.05, 3, -128, 127)
        return nn.functional.linear(rows, self.weight_4_bits(self.head.weight), self.head.bias)


@pytest.fixture
def model() -> TrainedForQuantization:
    """The model after a few runs in which its quantizers have observed ranges."""
    model = TrainedForQuantization()
    with torch.no_grad():
        for _ in range(3):
            model.decode(torch.randint(0, WORDS, (2, 9)), model.encode(torch.rand(2, 1, 8, 16)))
    return model.eval()


def test_the_graphs_round_as_the_model_does(model: TrainedForQuantization, tmp_path: Path) -> None:
    report = export_model(
        model, torch.rand(1, 1, 8, 16), tmp_path / "b", max_length=12, start_tokens=1
    )
    assert report.parity.largest_difference < 1e-5
    image = torch.rand(1, 1, 8, 16)
    (result,), _ = load_session(tmp_path / "b").run_arrays({"image": image.numpy()})
    tokens = [1]
    with torch.no_grad():
        memory = with_frozen_fake_quantizers(model).encode(image)
        for _ in range(len(result.tokens)):
            logits = model.decode(torch.tensor([tokens]), memory)
            tokens.append(int(logits[0, -1].argmax()))
    assert list(result.tokens) == tokens[1:]
    for graph in ("encoder", "step"):
        operators = {node.op_type for node in ir.load(tmp_path / "b/fp32" / f"{graph}.onnx").graph}
        assert "Round" in operators, f"{graph} rounds activations"


def test_observed_scales_do_not_change_any_more(model: TrainedForQuantization) -> None:
    scale = model.image_8_bits.scale.clone()
    frozen = with_frozen_fake_quantizers(model)
    assert isinstance(frozen.image_8_bits, FrozenFakeQuantize)
    with torch.no_grad():
        frozen.encode(1000 * torch.rand(1, 1, 8, 16))
    assert torch.equal(model.image_8_bits.scale, scale)
    assert model.image_8_bits.observer_enabled[0] == 1, "the user's model is as it was"


def test_a_quantizer_that_is_off_does_nothing(model: TrainedForQuantization) -> None:
    model.apply(disable_fake_quant)
    frozen = with_frozen_fake_quantizers(model)
    assert isinstance(frozen.image_8_bits, nn.Identity)


def test_a_model_without_fake_quantizers_stays_itself() -> None:
    model = nn.Linear(2, 2)
    assert with_frozen_fake_quantizers(model) is model


@pytest.mark.parametrize("zero_point", [0, 3, -128])
@pytest.mark.parametrize("scale", [0.1, 1 / 3, 0.0078125])
def test_rounding_is_that_of_pytorch_in_every_bit(scale: float, zero_point: int) -> None:
    steps = torch.arange(-300, 300, dtype=torch.float32)
    # numbers between two steps, on them, in the middle, and beyond the limits
    values = torch.cat([steps, steps + 0.5, steps + 0.4999]) * scale
    expected = torch.fake_quantize_per_tensor_affine(values, scale, zero_point, -128, 127)
    with PortableOps():
        actual = torch.fake_quantize_per_tensor_affine(values, scale, zero_point, -128, 127)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_channels_have_scales_of_their_own(axis: int) -> None:
    values = torch.randn(3, 4, 5)
    size = values.shape[axis]
    scale, zero = torch.rand(size) + 0.01, torch.arange(size, dtype=torch.int32)
    arguments = values, scale, zero, axis % 3, -8, 7
    with PortableOps():
        actual = torch.fake_quantize_per_channel_affine(*arguments)
    assert torch.equal(actual, torch.fake_quantize_per_channel_affine(*arguments))
    assert len(np.unique(actual.numpy())) > 8


def test_other_packages_are_refused_by_name() -> None:
    kind = type("FakeQuantizedLinear", (nn.Linear,), {"__module__": "torchao.quantization.qat"})
    model = nn.Sequential(nn.ReLU(), kind(2, 2))
    with pytest.raises(UnsupportedModelError) as caught:
        with_frozen_fake_quantizers(model)
    assert str(caught.value) == (
        "1 is a FakeQuantizedLinear of torchao, which has no ONNX operators; export the model with "
        "float weights, as it was before it was prepared or converted, and then quantize the bundle"
    )


def test_modules_that_pytorch_has_converted_are_refused() -> None:
    model = nn.Sequential(torch.ao.nn.quantized.ReLU6())  # type: ignore[no-untyped-call]
    with pytest.raises(UnsupportedModelError, match=r"^0 is a ReLU6 of torch\.ao\.nn\.quantized, "):
        with_frozen_fake_quantizers(model)

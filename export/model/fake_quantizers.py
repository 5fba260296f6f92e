"""Models trained with quantization in mind: their fake quantizers export with the scales they have.

PyTorch's `FakeQuantize` modules branch on a tensor and may change their scales in every run, which
no trace can hold. A frozen one computes the same with the scales of now:

    FakeQuantize (observer, scale, zero_point)      FrozenFakeQuantize (scale, zero_point)

Modules and weights of other quantization packages have operators of their own that ONNX does not
have, so they are refused with the way out.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.model.substitution import Model, substitute

_PACKAGES = ("torchao", "modelopt", "bitsandbytes", "brevitas", "torch.ao.nn.quantized")
_WAY_OUT = (
    "export the model with float weights, as it was before it was prepared or converted, and then "
    "quantize the bundle"
)


def with_frozen_fake_quantizers(model: Model) -> Model:
    """Returns a copy of a model whose fake quantizers keep their scales; itself without any.

    Args:
        model: module in eval mode.

    Raises:
        UnsupportedModelError: a module or a weight is of a quantization package that no ONNX
            operator stands for.
    """
    _refuse_other_packages(model)
    if not any(isinstance(module, FakeQuantizeBase) for module in model.modules()):
        return model
    return substitute(model, {FakeQuantizeBase: FrozenFakeQuantize.of})


class FrozenFakeQuantize(nn.Module):
    """Rounds to integers of a fixed scale and back.

    Attributes:
        axis: the axis whose entries have scales of their own; None if all share one.
        quant_min: smallest integer.
        quant_max: largest integer.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, axis: int | None
    ) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.quant_min, self.quant_max, self.axis = quant_min, quant_max, axis

    @staticmethod
    def of(module: nn.Module) -> nn.Module:
        """Returns the frozen form of a fake quantizer; an Identity if it is switched off."""
        quantizer = cast("torch.ao.quantization.FakeQuantize", module)
        if not int(quantizer.fake_quant_enabled[0]):
            return nn.Identity()
        return FrozenFakeQuantize(
            quantizer.scale.detach(),
            quantizer.zero_point.detach(),
            int(quantizer.activation_post_process.quant_min),
            int(quantizer.activation_post_process.quant_max),
            int(quantizer.ch_axis) if quantizer.is_per_channel else None,
        )

    def forward(self, tensor: Tensor) -> Tensor:
        """Returns the rounded tensor, of the same shape."""
        limits = self.quant_min, self.quant_max
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(
                tensor, self.scale, self.zero_point, *limits
            )
        return torch.fake_quantize_per_channel_affine(
            tensor, self.scale, self.zero_point, self.axis, *limits
        )


def _refuse_other_packages(model: nn.Module) -> None:
    for path, module in model.named_modules():
        _refuse(path or "the model", type(module))
        tensors = dict(module.named_parameters(recurse=False))
        tensors |= dict(module.named_buffers(recurse=False))
        for name, tensor in tensors.items():
            for value in (tensor, tensor.data):
                _refuse(f"{path}.{name}".lstrip("."), type(value))


def _refuse(name: str, kind: type) -> None:
    package = next((p for p in _PACKAGES if f"{kind.__module__}.".startswith(f"{p}.")), None)
    if package is not None:
        raise UnsupportedModelError(
            f"{name} is a {kind.__name__} of {package}, which has no ONNX operators; {_WAY_OUT}"
        )

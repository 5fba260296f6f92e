"""The precisions that a bundle can be quantized to, and what each means per component."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hybrid_deploy.errors import UsageError

BFLOAT16_OPSET = 22
"""The first operator set whose convolutions and trigonometry know bfloat16."""


class EncoderForm(str, Enum):
    """What becomes of the encoder's numbers."""

    HALF = "fp16"
    BFLOAT16 = "bf16"
    INT8 = "int8"
    INT8_CPU = "int8-cpu"


class DecoderForm(str, Enum):
    """What becomes of the decoder's numbers, in prefill and step alike."""

    HALF = "fp16"
    BFLOAT16 = "bf16"
    INT8_WEIGHTS = "int8-weights"


@dataclass(frozen=True)
class Recipe:
    """One precision.

    Attributes:
        name: as given on the command line, and the default name of the variant.
        encoder: what becomes of the encoder.
        decoder: what becomes of prefill and step.
        summary: what it is good for, in one line.
    """

    name: str
    encoder: EncoderForm
    decoder: DecoderForm
    summary: str

    @property
    def needs_scales(self) -> bool:
        """Whether samples must be run to learn the ranges of activations."""
        return self.encoder in (EncoderForm.INT8, EncoderForm.INT8_CPU)

    @property
    def is_emulated(self) -> bool:
        """Whether its tokens are those of an emulation: no CPU kernels compute in it."""
        return self.decoder is DecoderForm.BFLOAT16

    @property
    def oldest_opset(self) -> int:
        """The first ONNX operator set whose operators know it."""
        return BFLOAT16_OPSET if self.decoder is DecoderForm.BFLOAT16 else 18


_RECIPES = (
    Recipe("fp16", EncoderForm.HALF, DecoderForm.HALF, "half the size, for GPUs"),
    Recipe(
        "bf16",
        EncoderForm.BFLOAT16,
        DecoderForm.BFLOAT16,
        "half the size with float's range, for GPUs from Ampere on; not for CPUs",
    ),
    Recipe(
        "int8",
        EncoderForm.INT8,
        DecoderForm.INT8_WEIGHTS,
        "for TensorRT; on a CPU its convolutions are slower than fp32",
    ),
    Recipe(
        "int8-cpu",
        EncoderForm.INT8_CPU,
        DecoderForm.INT8_WEIGHTS,
        "for ONNX Runtime on a CPU; TensorRT refuses it",
    ),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}
PRECISIONS = tuple(RECIPES)


def recipe_for(name: str) -> Recipe:
    """Gives the precision of that name.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    if name not in RECIPES:
        raise UsageError(f"unknown precision {name!r}; choose one of: {', '.join(PRECISIONS)}")
    return RECIPES[name]

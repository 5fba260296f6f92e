"""The precisions that a bundle can be quantized to, each described by a recipe per component."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

from hybrid_deploy.errors import UsageError

BFLOAT16_OPSET = 22
"""The first ONNX operator set whose convolutions and trigonometric functions take bfloat16."""

INT4_OPSET = 21
"""The first ONNX operator set with int4, and with one scale per block of weights."""

FLOAT8_OPSET = 19
"""The first ONNX operator set with 8-bit floats."""

BLOCK_SIZES = (32, 64, 128)
"""The numbers of weights that may share a scale."""

INT4_BLOCK, INT8_BLOCK = 32, 128
"""The number of weights of 4 or 8 bits that share a scale, if no other one is asked for."""

FLOATS = ("fp32", "fp16")
"""The types of the numbers that a recipe does not quantize; the first is the default."""

FLOAT_FORMS = frozenset({"fp32", "fp16", "bf16", "fp32-cpu"})
"""The forms of either component whose numbers all have 16 or 32 bits."""


class EncoderForm(str, Enum):
    """The number types of the encoder; `-cpu` forms use operators of ONNX Runtime's CPU backend."""

    FLOAT = "fp32"
    HALF = "fp16"
    BFLOAT16 = "bf16"
    INT8 = "int8"
    INT8_CPU = "int8-cpu"
    FLOAT8 = "fp8"
    FLOAT_CPU = "fp32-cpu"


class DecoderForm(str, Enum):
    """The number types of the decoder's graphs; a `-cpu` form as in `EncoderForm`."""

    FLOAT = "fp32"
    HALF = "fp16"
    BFLOAT16 = "bf16"
    INT8 = "int8"
    INT8_WEIGHTS = "int8-weights"
    INT4_WEIGHTS = "int4-weights"
    FLOAT8 = "fp8"
    FLOAT_CPU = "fp32-cpu"
    INT8_CPU = "int8-cpu"
    INT4_CPU = "int4-cpu"

    @property
    def portable(self) -> DecoderForm:
        """The form with the same numbers in standard ONNX operators; itself if not for the CPU."""
        return _PORTABLE.get(self, self)

    @property
    def is_for_cpu(self) -> bool:
        """Whether only ONNX Runtime's CPU kernels run this form."""
        return self in _PORTABLE


_PORTABLE = {
    DecoderForm.FLOAT_CPU: DecoderForm.FLOAT,
    DecoderForm.INT8_CPU: DecoderForm.INT8_WEIGHTS,
    DecoderForm.INT4_CPU: DecoderForm.INT4_WEIGHTS,
}


_Form = TypeVar("_Form", EncoderForm, DecoderForm)
_CALIBRATED = frozenset({"int8", "int8-cpu", "fp8"})
_CALIBRATED_DECODERS = frozenset({"int8", "fp8"})
_MIN_OPSETS = {
    "bf16": BFLOAT16_OPSET,
    "fp8": FLOAT8_OPSET,
    "int8-weights": INT4_OPSET,
    "int4-weights": INT4_OPSET,
}
_FLOAT16_SCALES_OPSET = 19
"""The first ONNX operator set whose scales may be float16."""


@dataclass(frozen=True)
class Recipe:
    """The description of one precision.

    Attributes:
        name: name of the precision on the command line, and the default name of the variant.
        encoder: form of the encoder.
        decoder: form of the decoder's graphs.
        summary: one line on the use of the precision.
        block_size: number of decoder weights that share a scale, where it divides the summed axis
            of the weight; None leaves it to the form.
        floats: type of the numbers that are not quantized, `fp32` or `fp16`.
    """

    name: str
    encoder: EncoderForm
    decoder: DecoderForm
    summary: str = ""
    block_size: int | None = None
    floats: str = "fp32"

    @property
    def has_float16(self) -> bool:
        """Whether some numbers are float16."""
        return "fp16" in (self.encoder.value, self.decoder.value, self.floats)

    @property
    def needs_scales(self) -> bool:
        """Whether the recipe quantizes activations, whose ranges need samples."""
        return self.encoder.value in _CALIBRATED or self.decoder.value in _CALIBRATED_DECODERS

    @property
    def uses_scales(self) -> bool:
        """Whether the recipe needs samples, or is more accurate with them."""
        return self.needs_scales or self.decoder.portable is DecoderForm.INT4_WEIGHTS

    @property
    def uses_moments(self) -> bool:
        """Whether the decoder's weights are rounded with error feedback if there are samples."""
        return self.decoder.portable is DecoderForm.INT4_WEIGHTS

    @property
    def is_emulated(self) -> bool:
        """Whether an emulation in float32 evaluates it: no CPU kernels compute in bfloat16."""
        return "bf16" in (self.encoder.value, self.decoder.value)

    @property
    def min_opset(self) -> int:
        """The oldest ONNX operator set that can express the recipe."""
        scales_opset = _FLOAT16_SCALES_OPSET if self.quantizes and self.has_float16 else 18
        forms = (self.encoder.value, self.decoder.portable.value)
        return max(scales_opset, *(_MIN_OPSETS.get(form, 18) for form in forms))

    @property
    def export_opset(self) -> int:
        """The oldest operator set from `min_opset` on that a model can be exported with."""
        return 21 if self.min_opset <= 21 else 24

    @property
    def quantizes(self) -> bool:
        """Whether the recipe quantizes layers to numbers of 8 bits or fewer."""
        return not {self.encoder.value, self.decoder.value} <= FLOAT_FORMS


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
        "int8-full",
        EncoderForm.INT8,
        DecoderForm.INT8,
        "as int8, with the decoder's activations in 8 bits too",
    ),
    Recipe(
        "int8-cpu",
        EncoderForm.INT8_CPU,
        DecoderForm.INT8_CPU,
        "for ONNX Runtime on a CPU; TensorRT refuses it",
    ),
    Recipe(
        "int4-cpu",
        EncoderForm.INT8_CPU,
        DecoderForm.INT4_CPU,
        "as int8-cpu, with weights of 4 bits in the decoder",
    ),
    Recipe(
        "fp32-cpu",
        EncoderForm.FLOAT_CPU,
        DecoderForm.FLOAT_CPU,
        "float's own tokens from ONNX Runtime's CPU kernels; needs no samples",
    ),
    Recipe(
        "int8-weights",
        EncoderForm.FLOAT,
        DecoderForm.INT8_WEIGHTS,
        "the decoder's weights alone, without samples; for any device",
    ),
    Recipe(
        "int4-weights",
        EncoderForm.FLOAT,
        DecoderForm.INT4_WEIGHTS,
        "the decoder's weights alone, better with samples; for CPUs and GPUs from Ampere on",
    ),
    Recipe("fp8", EncoderForm.FLOAT8, DecoderForm.FLOAT8, "for GPUs from Ada on, and Thor"),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}
PRECISIONS = tuple(RECIPES)


def recipe_for(
    name: str | None,
    *,
    encoder: str | None = None,
    decoder: str | None = None,
    block_size: int | None = None,
    floats: str | None = None,
) -> Recipe:
    """Returns the recipe of a named precision, or of a mix of an encoder and a decoder form.

    Args:
        name: one of PRECISIONS; may be None if `encoder` or `decoder` is given, and then means
            float32 for the other one.
        encoder: an `EncoderForm` in place of the named precision's form of the encoder.
        decoder: a `DecoderForm` in place of the named precision's form of the decoder.
        block_size: number of decoder weights that share a scale, one of BLOCK_SIZES; only for
            decoders whose weights alone are quantized.
        floats: type of the numbers that are not quantized, one of FLOATS; None means `fp32`.

    Raises:
        UsageError: there is no such name, form, block size or float type (the message lists the
            possible ones), or they do not fit together.
    """
    if name is not None and name not in RECIPES:
        raise UsageError(f"unknown precision {name!r}; choose one of: {', '.join(PRECISIONS)}")
    if name is None and encoder is None and decoder is None:
        raise UsageError(f"name a precision: {', '.join(PRECISIONS)}")
    recipe = Recipe("", EncoderForm.FLOAT, DecoderForm.FLOAT) if name is None else RECIPES[name]
    if encoder is not None:
        recipe = replace(recipe, encoder=_form(EncoderForm, encoder, "encoder"))
    if decoder is not None:
        recipe = replace(recipe, decoder=_form(DecoderForm, decoder, "decoder"))
    recipe = next(
        (r for r in _RECIPES if (r.encoder, r.decoder) == (recipe.encoder, recipe.decoder)),
        replace(recipe, name=f"{recipe.encoder.value}+{recipe.decoder.value}", summary="a mix"),
    )
    if (recipe.encoder, recipe.decoder) == (EncoderForm.FLOAT, DecoderForm.FLOAT):
        raise UsageError("encoder and decoder both stay fp32; name another form for one of them")
    if block_size is not None:
        recipe = _with_block_size(recipe, block_size)
    return recipe if floats in (None, FLOATS[0]) else _with_floats(recipe, floats)


def _form(forms: type[_Form], name: str, component: str) -> _Form:
    try:
        return forms(name)
    except ValueError:
        names = ", ".join(form.value for form in forms)
        raise UsageError(f"unknown {component} form {name!r}; choose one of: {names}") from None


def _with_block_size(recipe: Recipe, block_size: int) -> Recipe:
    if block_size not in BLOCK_SIZES:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise UsageError(f"no block of {block_size} weights; choose one of: {sizes}")
    if recipe.decoder.portable not in (DecoderForm.INT8_WEIGHTS, DecoderForm.INT4_WEIGHTS):
        raise UsageError(
            f"{recipe.name} has no weights in blocks; choose int8-weights or int4-weights for "
            "the decoder"
        )
    return replace(recipe, block_size=block_size)


def _with_floats(recipe: Recipe, floats: str | None) -> Recipe:
    """Returns the recipe with another type of the numbers that it does not quantize."""
    if floats not in FLOATS:
        raise UsageError(f"unknown floats {floats!r}; choose one of: {', '.join(FLOATS)}")
    for_cpu = recipe.encoder in (EncoderForm.INT8_CPU, EncoderForm.FLOAT_CPU)
    if not recipe.quantizes or for_cpu or recipe.decoder.is_for_cpu:
        raise UsageError(f"{recipe.name} has no floats to choose; leave --floats out")
    encoder = EncoderForm.HALF if recipe.encoder is EncoderForm.FLOAT else recipe.encoder
    decoder = DecoderForm.HALF if recipe.decoder is DecoderForm.FLOAT else recipe.decoder
    name = f"{recipe.name}-{floats}"
    return replace(recipe, name=name, encoder=encoder, decoder=decoder, floats=floats)

import pytest

from hybrid_deploy.calibration.recipes import (
    PRECISIONS,
    DecoderForm,
    EncoderForm,
    recipe_for,
)
from hybrid_deploy.errors import UsageError


def test_unknown_precision_lists_all_precisions() -> None:
    with pytest.raises(UsageError) as caught:
        recipe_for("int3")
    assert str(caught.value) == (
        "unknown precision 'int3'; choose one of: fp16, bf16, int8, int8-full, int8-cpu, "
        "int4-cpu, fp32-cpu, int8-weights, int4-weights, fp8"
    )


def test_only_quantized_activations_need_scales() -> None:
    names = {name for name in PRECISIONS if recipe_for(name).needs_scales}
    assert names == {"int8", "int8-full", "int8-cpu", "int4-cpu", "fp8"}
    assert recipe_for("int4-weights").uses_scales
    assert not recipe_for("int8-weights").uses_scales
    assert not recipe_for("fp32-cpu").uses_scales


def test_a_decoder_for_the_cpu_needs_the_scales_of_its_portable_form() -> None:
    int8, int4 = (
        recipe_for(None, encoder="fp32-cpu", decoder=decoder)
        for decoder in ("int8-cpu", "int4-cpu")
    )
    assert not int8.needs_scales and not int8.uses_scales
    assert not int4.needs_scales and int4.uses_scales


@pytest.mark.parametrize(("name", "opset"), [("fp32-cpu", 18), ("int8-cpu", 21), ("int4-cpu", 21)])
def test_forms_for_the_cpu_need_the_opset_of_their_portable_forms(name: str, opset: int) -> None:
    assert recipe_for(name).min_opset == opset


def test_forms_for_the_cpu_have_portable_ones() -> None:
    assert DecoderForm.INT8_CPU.portable is DecoderForm.INT8_WEIGHTS
    assert DecoderForm.INT8.portable is DecoderForm.INT8
    assert [form for form in DecoderForm if form.is_for_cpu] == [
        DecoderForm.FLOAT_CPU, DecoderForm.INT8_CPU, DecoderForm.INT4_CPU,
    ]  # fmt: skip
    assert not recipe_for("fp32-cpu").quantizes
    assert recipe_for(None, encoder="fp32-cpu", decoder="int8-cpu").quantizes


def test_components_mix() -> None:
    mixed = recipe_for(None, encoder="int8-cpu", decoder="int4-weights", block_size=32)
    assert (mixed.name, mixed.encoder, mixed.decoder, mixed.block_size) == (
        "int8-cpu+int4-weights", EncoderForm.INT8_CPU, DecoderForm.INT4_WEIGHTS, 32,
    )  # fmt: skip
    assert mixed.needs_scales and mixed.min_opset == 21


@pytest.mark.parametrize(
    ("precision", "floats", "min_opset", "export_opset"),
    [
        ("fp16", "fp32", 18, 21),
        ("int8-full", "fp32", 18, 21),
        ("int8-full", "fp16", 19, 21),
        ("int4-weights", "fp32", 21, 21),
        ("bf16", "fp32", 22, 24),
    ],
)
def test_min_opset_of_a_precision(
    precision: str, floats: str, min_opset: int, export_opset: int
) -> None:
    recipe = recipe_for(precision, floats=floats)
    assert (recipe.min_opset, recipe.export_opset) == (min_opset, export_opset)
    assert recipe_for("int8", decoder="fp16").name == "int8+fp16"


def test_a_mix_that_equals_a_named_precision_has_its_name() -> None:
    assert recipe_for(None, encoder="int8", decoder="int8-weights") == recipe_for("int8")
    assert recipe_for(None, encoder="int8-cpu", decoder="int4-cpu") == recipe_for("int4-cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": None}, "name a precision: fp16"),
        ({"name": None, "encoder": "int3"}, "unknown encoder form 'int3'; choose one of: fp32"),
        ({"name": None, "encoder": "int4-cpu"}, "unknown encoder form 'int4-cpu'; choose one of"),
        ({"name": "int4-cpu", "floats": "fp16"}, "int4-cpu has no floats to choose"),
        ({"name": "fp32-cpu", "floats": "fp16"}, "fp32-cpu has no floats to choose"),
        ({"name": "fp32-cpu", "block_size": 32}, "fp32-cpu has no weights in blocks"),
        ({"name": None, "encoder": "fp32"}, "encoder and decoder both stay fp32"),
        ({"name": "int4-weights", "block_size": 48}, "no block of 48 weights; choose one of: 32"),
        ({"name": "fp16", "block_size": 32}, "fp16 has no weights in blocks"),
    ],
)
def test_wrong_requests(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe_for(**arguments)  # type: ignore[arg-type]

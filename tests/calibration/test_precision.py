import pytest

from hybrid_deploy.calibration.precision import (
    PRECISIONS,
    DecoderForm,
    EncoderForm,
    recipe_for,
)
from hybrid_deploy.errors import UsageError


def test_unknown_precision_lists_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        recipe_for("int3")
    assert str(caught.value) == (
        "unknown precision 'int3'; choose one of: fp16, bf16, int8, int8-full, int8-cpu, "
        "int8-weights, int4-weights, fp8"
    )


def test_only_rounded_activations_need_scales() -> None:
    needing = {name for name in PRECISIONS if recipe_for(name).needs_scales}
    assert needing == {"int8", "int8-full", "int8-cpu", "fp8"}
    assert recipe_for("int4-weights").uses_scales
    assert not recipe_for("int8-weights").uses_scales


def test_components_mix() -> None:
    mixed = recipe_for(None, encoder="int8-cpu", decoder="int4-weights", block_size=32)
    assert (mixed.name, mixed.encoder, mixed.decoder, mixed.block_size) == (
        "int8-cpu+int4-weights", EncoderForm.INT8_CPU, DecoderForm.INT4_WEIGHTS, 32,
    )  # fmt: skip
    assert mixed.needs_scales and mixed.oldest_opset == 21


@pytest.mark.parametrize(
    ("precision", "floats", "oldest", "exported"),
    [
        ("fp16", "fp32", 18, 21),
        ("int8-full", "fp32", 18, 21),
        ("int8-full", "fp16", 19, 21),
        ("int4-weights", "fp32", 21, 21),
        ("bf16", "fp32", 22, 24),
    ],
)
def test_oldest_operators_of_a_precision(
    precision: str, floats: str, oldest: int, exported: int
) -> None:
    recipe = recipe_for(precision, floats=floats)
    assert (recipe.oldest_opset, recipe.known_opset) == (oldest, exported)
    assert recipe_for("int8", decoder="fp16").name == "int8+fp16"


def test_a_mix_that_has_a_name_goes_by_it() -> None:
    assert recipe_for(None, encoder="int8", decoder="int8-weights") == recipe_for("int8")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"name": None}, "name a precision: fp16"),
        ({"name": None, "encoder": "int3"}, "unknown encoder form 'int3'; choose one of: fp32"),
        ({"name": None, "decoder": "int8-cpu"}, "unknown decoder form 'int8-cpu'; choose one of"),
        ({"name": None, "encoder": "fp32"}, "encoder and decoder both stay fp32"),
        ({"name": "int4-weights", "block_size": 48}, "no block of 48 weights; choose one of: 32"),
        ({"name": "fp16", "block_size": 32}, "fp16 has no weights in blocks"),
    ],
)
def test_wrong_requests(request_: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        recipe_for(**request_)  # type: ignore[arg-type]

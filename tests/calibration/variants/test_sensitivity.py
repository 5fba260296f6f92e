"""The sensitivity of each layer, measured on a real model."""

from __future__ import annotations

import pytest

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.evaluation.logit_divergence import Teacher
from hybrid_deploy.calibration.recipes import Recipe, recipe_for
from hybrid_deploy.calibration.samples.samples import Inputs, samples_of
from hybrid_deploy.calibration.variants.float_model import FloatModel
from hybrid_deploy.calibration.variants.sensitivity import Sensitivity, rank_layers
from tests.fakes.edited_bundle import with_sensitive_head

INT8, INT4 = recipe_for("int8-weights"), recipe_for("int4-weights")
Stages = list[tuple[str, int, int]]


def ranked(
    bundle: Bundle, images: list[Inputs], recipe: Recipe, stages: Stages | None = None
) -> list[Sensitivity]:
    def note(*stage: object) -> None:
        if stages is not None:
            stages.append(stage)  # type: ignore[arg-type]

    samples = samples_of(bundle, images) if recipe.needs_scales else None
    model = FloatModel(bundle, "fp32", samples, "minmax", note)
    return rank_layers(model, recipe, Teacher(bundle, "fp32", images, threads=1), note)


def names(ranking: list[Sensitivity]) -> list[str]:
    return [sensitivity.layer.name for sensitivity in ranking]


@pytest.fixture
def decoder_layers(bundle: Bundle) -> list[str]:
    model = FloatModel(bundle, "fp32", None, "minmax", lambda *_: None)
    return [layer.name for layer in model.layers if layer.name.startswith("decoder/")]


def test_the_most_sensitive_layer_is_ranked_first(
    bundle: Bundle, images: list[Inputs], decoder_layers: list[str]
) -> None:
    stages: Stages = []
    ranking = ranked(with_sensitive_head(bundle), images, INT8, stages)
    assert sorted(names(ranking)) == sorted(decoder_layers), "every layer is ranked once"
    divergences = [sensitivity.kl_mean_nats for sensitivity in ranking]
    assert divergences == sorted(divergences, reverse=True)
    head, second = ranking[:2]
    assert head.layer.name == "decoder/head"
    # quantization destroys the head, and only rounds the other layers
    assert head.kl_mean_nats > 1000 * second.kl_mean_nats
    assert head.kl_per_parameter == head.kl_mean_nats / (32 * 13)
    assert stages == [("sensitivity", done, 7) for done in range(8)]


def test_each_layer_diverges_more_with_fewer_bits(
    bundle: Bundle, images: list[Inputs], decoder_layers: list[str]
) -> None:
    int8, int4 = (
        {sensitivity.layer.name: sensitivity for sensitivity in ranked(bundle, images, recipe)}
        for recipe in (INT8, INT4)
    )
    assert set(int8) == set(int4) == set(decoder_layers)
    head = "decoder/head"  # the projection to a small vocabulary has 8 bits in both
    assert int4.pop(head).kl_mean_nats == int8[head].kl_mean_nats
    for name, sensitivity in int4.items():
        # a step is 18 times as wide, and the divergence grows with the square of the step
        assert sensitivity.kl_mean_nats > 10 * int8[name].kl_mean_nats > 0, name
        assert sensitivity.largest_difference > 3 * int8[name].largest_difference, name


def test_only_layers_that_are_quantized_are_ranked(bundle: Bundle, images: list[Inputs]) -> None:
    ranking = ranked(bundle, images, recipe_for(None, encoder="int8-cpu"))
    assert len(ranking) == 9
    assert all(name.startswith("encoder/") for name in names(ranking))
    assert {sensitivity.layer.operator for sensitivity in ranking} == {"Conv", "MatMul"}
    assert ranking[0].kl_mean_nats > 0
    assert ranked(bundle, images, recipe_for("fp16")) == []

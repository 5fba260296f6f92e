"""What each layer costs alone, measured on a real model."""

from __future__ import annotations

import pytest

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.evaluation.logit_divergence import Teacher
from hybrid_deploy.calibration.recipes import Recipe, recipe_for
from hybrid_deploy.calibration.samples.samples import Inputs, samples_of
from hybrid_deploy.calibration.variants.float_model import FloatModel
from hybrid_deploy.calibration.variants.sensitivity import Sensitivity, rank_layers
from tests.fakes.edited_bundle import with_sore_head

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
    return [one.layer.name for one in ranking]


@pytest.fixture
def decoder_layers(bundle: Bundle) -> list[str]:
    model = FloatModel(bundle, "fp32", None, "minmax", lambda *_: None)
    return [one.name for one in model.layers if one.name.startswith("decoder/")]


def test_a_sore_layer_is_ranked_first(
    bundle: Bundle, images: list[Inputs], decoder_layers: list[str]
) -> None:
    stages: Stages = []
    ranking = ranked(with_sore_head(bundle), images, INT8, stages)
    assert sorted(names(ranking)) == sorted(decoder_layers), "every layer once"
    costs = [one.kl_mean_nats for one in ranking]
    assert costs == sorted(costs, reverse=True)
    head, second = ranking[:2]
    assert head.layer.name == "decoder/head"
    # the whole head against the rounding of a sound layer
    assert head.kl_mean_nats > 1000 * second.kl_mean_nats
    assert head.kl_per_parameter == head.kl_mean_nats / (32 * 13)
    assert stages == [("sensitivity", done, 7) for done in range(8)]


def test_each_layer_costs_more_with_fewer_bits(
    bundle: Bundle, images: list[Inputs], decoder_layers: list[str]
) -> None:
    with_8, with_4 = (
        {one.layer.name: one for one in ranked(bundle, images, recipe)} for recipe in (INT8, INT4)
    )
    assert set(with_8) == set(with_4) == set(decoder_layers)
    for name, few in with_4.items():
        # a step is 18 times as wide, and a divergence goes with its square
        assert few.kl_mean_nats > 10 * with_8[name].kl_mean_nats > 0, name
        assert few.largest_difference > 3 * with_8[name].largest_difference, name


def test_only_layers_that_are_quantized_are_ranked(bundle: Bundle, images: list[Inputs]) -> None:
    ranking = ranked(bundle, images, recipe_for(None, encoder="int8-cpu"))
    assert len(ranking) == 9
    assert all(name.startswith("encoder/") for name in names(ranking))
    assert {one.layer.operator for one in ranking} == {"Conv", "MatMul"}
    assert ranking[0].kl_mean_nats > 0
    assert ranked(bundle, images, recipe_for("fp16")) == []

"""Ranks layers by how much the logits change when that layer alone is quantized."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hybrid_deploy.calibration.evaluation.logit_divergence import Teacher
from hybrid_deploy.calibration.qdq.layers import Layer
from hybrid_deploy.calibration.recipes import FLOAT_FORMS, Recipe
from hybrid_deploy.calibration.variants.float_model import FloatModel
from hybrid_deploy.calibration.variants.trial_variant import trial_variant
from hybrid_deploy.progress import Progress
from hybrid_deploy.report import Column
from hybrid_deploy.runtime.backends.registry import (
    DEFAULT_BACKEND,
    BackendOptions,
    load_backend,
)

COLUMNS = (
    Column("layer", "layer"),
    Column("operator", "operator"),
    Column("parameters", "parameters"),
    Column("kl_mean_nats", "KL mean", digits=7),
    Column("largest_logit_difference", "largest logit difference", digits=4),
)
_TRIAL = "one-layer"


@dataclass(frozen=True)
class Sensitivity:
    """How much the logits change when one layer alone is quantized.

    Attributes:
        layer: the quantized layer.
        kl_mean_nats: mean Kullback-Leibler divergence from the float logits, for the same tokens.
        largest_difference: largest absolute difference from a float logit.
    """

    layer: Layer
    kl_mean_nats: float
    largest_difference: float

    @property
    def kl_per_parameter(self) -> float:
        """Mean divergence in nats divided by the number of weight values in the layer."""
        return self.kl_mean_nats / self.layer.parameter_count

    def record(self) -> dict[str, object]:
        """Returns a row for the table of COLUMNS."""
        return {
            "layer": self.layer.name,
            "operator": self.layer.operator,
            "parameters": self.layer.parameter_count,
            "kl_mean_nats": self.kl_mean_nats,
            "largest_logit_difference": self.largest_difference,
        }


def rank_layers(
    model: FloatModel,
    recipe: Recipe,
    teacher: Teacher,
    progress: Progress,
) -> list[Sensitivity]:
    """Quantizes each layer alone, measures the logits, and ranks the layers.

    A decoder form for the CPU is measured as its portable form: the ranking compares how layers
    are rounded, whatever operators compute with them.

    Args:
        model: the float model to quantize.
        recipe: the precision of each component.
        teacher: the recorded logits of the float variant on some samples.
        progress: called with the number of measured layers, as stage `sensitivity`.

    Returns:
        The sensitivity of every layer that the recipe quantizes, the most sensitive first.

    Raises:
        BackendError: a graph does not run.
    """
    layers = [layer for layer in model.layers if _is_quantized(layer, recipe)]
    ranking: list[Sensitivity] = []
    recipe = replace(recipe, decoder=recipe.decoder.portable)
    progress("sensitivity", 0, len(layers))
    for done, layer in enumerate(layers, start=1):
        other_layers = [other.name for other in model.layers if other is not layer]
        graphs = model.quantized(recipe, other_layers)
        with trial_variant(model.bundle, model.variant, _TRIAL, recipe, graphs) as bundle:
            student = load_backend(DEFAULT_BACKEND, bundle, _TRIAL, BackendOptions(threads=1))
            divergence = teacher.divergence(student)
        ranking.append(Sensitivity(layer, divergence.kl_mean_nats, divergence.largest_difference))
        progress("sensitivity", done, len(layers))
    return sorted(ranking, key=lambda sensitivity: sensitivity.kl_mean_nats, reverse=True)


def _is_quantized(layer: Layer, recipe: Recipe) -> bool:
    """Returns whether the recipe quantizes the layer's component."""
    component, _, _ = layer.name.partition("/")
    form = recipe.encoder.value if component == "encoder" else recipe.decoder.value
    return form not in FLOAT_FORMS

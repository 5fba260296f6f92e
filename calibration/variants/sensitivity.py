"""How much each layer alone costs when it is quantized."""

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
    """What becomes of the logits when one layer alone is quantized.

    Attributes:
        layer: the layer.
        kl_mean_nats: mean Kullback-Leibler divergence from the float logits, fed the same tokens.
        largest_difference: of a logit.
    """

    layer: Layer
    kl_mean_nats: float
    largest_difference: float

    @property
    def kl_per_parameter(self) -> float:
        """Divergence by the numbers that would stay float to avoid it."""
        return self.kl_mean_nats / self.layer.parameters

    def record(self) -> dict[str, object]:
        """Returns a row for the table of COLUMNS."""
        return {
            "layer": self.layer.name,
            "operator": self.layer.operator,
            "parameters": self.layer.parameters,
            "kl_mean_nats": self.kl_mean_nats,
            "largest_logit_difference": self.largest_difference,
        }


def rank_layers(
    model: FloatModel,
    recipe: Recipe,
    teacher: Teacher,
    progress: Progress,
) -> list[Sensitivity]:
    """Quantizes one layer after the other and measures the logits, in one pass.

    Forms for a CPU count as their portable ones: other operators are no matter of a layer.

    Args:
        model: what is quantized.
        recipe: how.
        teacher: the float variant on some samples.
        progress: called with how far the stage `sensitivity` is.

    Returns:
        The layers that the recipe quantizes, the most sensitive first.

    Raises:
        BackendError: a graph does not run.
    """
    layers = [layer for layer in model.layers if _is_quantized(layer, recipe)]
    found: list[Sensitivity] = []
    recipe = replace(recipe, decoder=recipe.decoder.portable)
    progress("sensitivity", 0, len(layers))
    for done, layer in enumerate(layers, start=1):
        others = [other.name for other in model.layers if other is not layer]
        graphs = model.quantized(recipe, others)
        with trial_variant(model.bundle, model.variant, _TRIAL, recipe, graphs) as bundle:
            student = load_backend(DEFAULT_BACKEND, bundle, _TRIAL, BackendOptions(threads=1))
            seen = teacher.divergence(student)
        found.append(Sensitivity(layer, seen.kl_mean_nats, seen.largest_difference))
        progress("sensitivity", done, len(layers))
    return sorted(found, key=lambda one: one.kl_mean_nats, reverse=True)


def _is_quantized(layer: Layer, recipe: Recipe) -> bool:
    component, _, _ = layer.name.partition("/")
    form = recipe.encoder.value if component == "encoder" else recipe.decoder.value
    return form not in FLOAT_FORMS

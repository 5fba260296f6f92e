"""The float variant of a bundle with its calibration, from which all other variants are made."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

import onnx_ir as ir

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.calibrate import calibrate
from hybrid_deploy.calibration.graphs.float_graphs import prepared_graphs
from hybrid_deploy.calibration.half_precision.float16 import (
    round_constants_to_half,
)
from hybrid_deploy.calibration.half_precision.float16_range import (
    FLOAT16,
    overflowing_tensors,
)
from hybrid_deploy.calibration.observation.magnitudes import observe_magnitudes
from hybrid_deploy.calibration.observation.moments import observe_moments
from hybrid_deploy.calibration.qdq.layers import Layer, layers_of, operator_names
from hybrid_deploy.calibration.qdq.vocabulary_projection import vocabulary_projection
from hybrid_deploy.calibration.recipes import Recipe
from hybrid_deploy.calibration.rewrite.apply_recipe import apply_recipe
from hybrid_deploy.calibration.samples.samples import Samples
from hybrid_deploy.calibration.statistics.scales import Scales
from hybrid_deploy.calibration.statistics.second_moments import WeightMoments
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import UsageError
from hybrid_deploy.progress import Progress, silent


class FloatModel:
    """A float variant that can be quantized any number of times, and is calibrated at most once.

    Attributes:
        bundle: the bundle that has the variant.
        variant: name of the float variant.
        samples: the samples to calibrate with; None if none were given.
        method: name of the method that chooses ranges, one of `range_methods.METHODS`.

    Args:
        bundle: the bundle that has the variant.
        variant: name of the float variant.
        samples: the samples to calibrate with.
        method: name of the method that chooses ranges.
        progress: called during the stages `calibrate`, `moments` and `overflow`.
        golden: golden samples, or the example of the export; without `samples`, they show which
            tensors overflow float16.
        scales_from_file: scales of an earlier calibration, used in place of samples.
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: str,
        samples: Samples | None,
        method: str,
        progress: Progress = silent,
        *,
        golden: Samples | None = None,
        scales_from_file: Scales | None = None,
    ) -> None:
        self.bundle = bundle
        self.variant = variant
        self.samples = samples
        self.method = method
        self._progress = progress
        self._golden = golden
        self._scales_from_file = scales_from_file

    @cached_property
    def layers(self) -> list[Layer]:
        """The layers of all graphs that can be quantized."""
        return layers_of(prepared_graphs(self.bundle, self.variant))

    @cached_property
    def projection(self) -> Layer | None:
        """The layer that computes the logits; None if none does it alone."""
        graphs = prepared_graphs(self.bundle, self.variant)
        projection = vocabulary_projection(graphs[GraphRole.STEP].graph)
        if projection is None:
            return None
        name = projection.linear.name
        layers = (layer for layer in self.layers if name in layer.names.get(GraphRole.STEP, ()))
        return next(layers, None)

    @cached_property
    def scales(self) -> Scales | None:
        """The scales from the file or from calibration; None without either."""
        if self._scales_from_file is not None or self.samples is None:
            return self._scales_from_file
        graphs = prepared_graphs(self.bundle, self.variant)
        return calibrate(
            self.bundle, self.variant, graphs, self.samples, self.method, self._progress
        )

    @cached_property
    def overflowing_tensors(self) -> dict[GraphRole, frozenset[str]]:
        """Names of the tensors that overflow float16 on the samples, by graph.

        Without samples, the golden samples are used or the example; without them, it is empty.
        """
        samples = self._golden if self.samples is None else self.samples
        if samples is None:
            return {}
        graphs = prepared_graphs(self.bundle, self.variant)
        for model in graphs.values():
            round_constants_to_half(model, FLOAT16)
        magnitudes = observe_magnitudes(self.bundle, graphs, samples, self._progress)
        return {
            role: overflowing_tensors(by_tensor, FLOAT16) for role, by_tensor in magnitudes.items()
        }

    @cached_property
    def moments(self) -> WeightMoments | None:
        """Second moments of the inputs of the decoder's weights; None without samples."""
        if self.samples is None:
            return None
        graphs = prepared_graphs(self.bundle, self.variant)
        return observe_moments(self.bundle, graphs, self.samples, self._progress)

    def quantized(
        self,
        recipe: Recipe,
        layers_in_float: Collection[str] = (),
        layers_in_8_bits: Collection[str] = (),
    ) -> dict[GraphRole, ir.Model]:
        """Returns new graphs, rewritten as a recipe states.

        Args:
            recipe: the precision of each component.
            layers_in_float: names of the layers that stay in float.
            layers_in_8_bits: names of the decoder's layers that have 8 bits in an int4 form.

        Raises:
            UsageError: the recipe needs scales and there are no samples, or there is no layer of
                a given name.
            CalibrationError: an activation or a weight does not fit the precision.
        """
        scales = self.scales_for(recipe)
        graphs = prepared_graphs(self.bundle, self.variant)
        in_float = {r: operator_names(self.layers, layers_in_float, r) for r in graphs}
        in_8_bits = {r: operator_names(self.layers, layers_in_8_bits, r) for r in graphs}
        overflowing = self.overflowing_tensors if recipe.has_float16 else {}
        typical_sizes = {name: dim.typical for name, dim in self.bundle.manifest.dims.items()}
        moments = self.moments if recipe.uses_moments else None
        apply_recipe(
            recipe, graphs, scales, in_float, overflowing, typical_sizes, moments, in_8_bits
        )
        return graphs

    def scales_for(self, recipe: Recipe) -> Scales | None:
        """Returns the scales for a recipe; None if it uses none, or can do without them.

        Raises:
            UsageError: the recipe needs scales, and there are no samples.
        """
        if not recipe.uses_scales:
            return None
        if self.scales is None and recipe.needs_scales:
            raise UsageError(
                f"{recipe.name} needs calibration samples; give --samples FOLDER, or --golden"
            )
        return self.scales

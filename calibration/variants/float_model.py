"""The float variant of a bundle, with what samples teach of it, as the source of all others."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

import onnx_ir as ir

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.calibrate import calibrate
from hybrid_deploy.calibration.graphs.float_graphs import prepared_graphs
from hybrid_deploy.calibration.half_precision.float16 import overflowing_tensors, round_constants
from hybrid_deploy.calibration.half_precision.float16_range import FLOAT16
from hybrid_deploy.calibration.observation.magnitudes import observe_magnitudes
from hybrid_deploy.calibration.qdq.layers import Layer, layers_of, names_in_float
from hybrid_deploy.calibration.recipes import Recipe
from hybrid_deploy.calibration.rewrite.apply_recipe import apply_recipe
from hybrid_deploy.calibration.samples.samples import Samples
from hybrid_deploy.calibration.statistics.scales import Scales
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import UsageError
from hybrid_deploy.progress import Progress, silent


class FloatModel:
    """A float variant that is quantized, once or several times.

    Attributes:
        bundle: that has it.
        variant: its name.
        samples: what activations are learned from; None if none were given.
        method: how the range of an activation is chosen.

    Args:
        golden: the bundle's golden samples, which float16 is tried on where there are no others.
        scales_from_file: scales that were calibrated before, in place of samples.
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
        """What can be quantized, layer by layer."""
        return layers_of(prepared_graphs(self.bundle, self.variant))

    @cached_property
    def scales(self) -> Scales | None:
        """What calibration learned; None without samples."""
        if self._scales_from_file is not None or self.samples is None:
            return self._scales_from_file
        graphs = prepared_graphs(self.bundle, self.variant)
        return calibrate(
            self.bundle, self.variant, graphs, self.samples, self.method, self._progress
        )

    @cached_property
    def overflowing_tensors(self) -> dict[GraphRole, frozenset[str]]:
        """The tensors that overflow float16 on the samples, or the golden ones where none are."""
        samples = self._golden if self.samples is None else self.samples
        if samples is None:
            return {}
        graphs = prepared_graphs(self.bundle, self.variant)
        for model in graphs.values():
            round_constants(model, FLOAT16)
        seen = observe_magnitudes(self.bundle, graphs, samples, self._progress)
        return {role: overflowing_tensors(magnitudes, FLOAT16) for role, magnitudes in seen.items()}

    def quantized(
        self, recipe: Recipe, layers_in_float: Collection[str] = ()
    ) -> dict[GraphRole, ir.Model]:
        """Returns the graphs of a recipe.

        Args:
            recipe: what becomes of each component.
            layers_in_float: names of the layers that stay float.

        Raises:
            UsageError: the recipe needs scales, and there are no samples; or there is no layer of
                a name.
            CalibrationError: something does not fit the precision.
        """
        scales = self.scales_for(recipe)
        graphs = prepared_graphs(self.bundle, self.variant)
        names = (
            {role: names_in_float(self.layers, layers_in_float, role) for role in graphs}
            if layers_in_float
            else None
        )
        wide = self.overflowing_tensors if recipe.has_float16 else {}
        typical = {name: dim.typical for name, dim in self.bundle.manifest.dims.items()}
        apply_recipe(recipe, graphs, scales, names, wide, typical)
        return graphs

    def scales_for(self, recipe: Recipe) -> Scales | None:
        """Returns the scales if a recipe uses them.

        Raises:
            UsageError: it needs them, and there are no samples.
        """
        if not recipe.uses_scales:
            return None
        if self.scales is None and recipe.needs_scales:
            raise UsageError(
                f"{recipe.name} needs calibration samples; give --samples FOLDER, or --golden"
            )
        return self.scales

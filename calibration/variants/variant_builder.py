"""Builds variants of a float model: rewrites, evaluates and adds them to the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from hybrid_deploy.bundle.bundle import Bundle, StagedVariant, open_bundle, staged_variant
from hybrid_deploy.calibration.evaluation.decode_all import DecodedSet, decode_all
from hybrid_deploy.calibration.evaluation.evaluate import Evaluation, evaluate
from hybrid_deploy.calibration.evaluation.logit_divergence import Teacher
from hybrid_deploy.calibration.half_precision.bfloat16_emulation import emulate_bfloat16
from hybrid_deploy.calibration.recipes import FLOATS, DecoderForm, EncoderForm, Recipe
from hybrid_deploy.calibration.samples.samples import SkippedSample
from hybrid_deploy.calibration.statistics.scales import SCALES_FILE, Scales, encode_scales
from hybrid_deploy.calibration.variants.accuracy_budget import find_layers_in_float
from hybrid_deploy.calibration.variants.accuracy_gate import check_accuracy
from hybrid_deploy.calibration.variants.auto_select import Candidate, measure_speeds
from hybrid_deploy.calibration.variants.bit_allocation import can_rank, layers_in_8_bits
from hybrid_deploy.calibration.variants.float_model import FloatModel
from hybrid_deploy.calibration.variants.request import QuantizationJob
from hybrid_deploy.calibration.variants.sensitivity import Sensitivity, rank_layers
from hybrid_deploy.calibration.variants.trial_variant import (
    described_variant,
    trial_variant,
    with_variant,
)
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import CalibrationError, HybridDeployError, UsageError
from hybrid_deploy.onnx_graphs.files import save_graphs
from hybrid_deploy.progress import Progress
from hybrid_deploy.version import __version__

_EMULATION = "emulation"
_RANKING_SAMPLES = 8


@dataclass(frozen=True)
class QuantizeReport:
    """The result of a quantization.

    Attributes:
        bundle: the bundle with the new variant.
        variant: name of the new variant.
        precision: name of the variant's precision.
        evaluation: how the variant compares with the float variant.
        samples: number of samples that the scales come from; 0 if no scales are used.
        skipped: samples that could not be used and were left out.
        emulated: whether the evaluation ran an emulation in float32, because no CPU kernels compute
            in the precision.
        layers_in_float: names of the layers that stay in float so that the budget holds.
        layers_in_8_bits: names of the layers of an int4 decoder that have 8 bits, since they
            disturb the logits most; the most sensitive first.
        ranking: the layers by sensitivity, the most sensitive first; empty if the budget holds
            without layers in float, or there is no budget.
        tensors_in_float32: tensors that stay in float32 because they overflow float16 on the
            samples, as `graph/tensor`.
    """

    bundle: Bundle
    variant: str
    precision: str
    evaluation: Evaluation
    samples: int
    skipped: tuple[SkippedSample, ...] = ()
    emulated: bool = False
    layers_in_float: tuple[str, ...] = ()
    layers_in_8_bits: tuple[str, ...] = ()
    ranking: tuple[Sensitivity, ...] = ()
    tensors_in_float32: tuple[str, ...] = ()


@dataclass
class VariantBuilder:
    """Builds and evaluates the variants of one job.

    Attributes:
        job: the float model, and the samples that its variants are compared on.
        progress: called during all stages.
    """

    job: QuantizationJob
    progress: Progress
    _reference_outputs: DecodedSet | None = field(default=None)
    _teacher: Teacher | None = field(default=None)
    _ranking_teacher: Teacher | None = field(default=None)
    _layers_in_8_bits: dict[int | None, tuple[str, ...]] = field(default_factory=dict)

    @property
    def model(self) -> FloatModel:
        """The float variant."""
        return self.job.model

    def build(
        self, recipe: Recipe, name: str, max_drop: float | None, *, force: bool
    ) -> QuantizeReport:
        """Builds a variant, evaluates it, and adds it to the bundle.

        Args:
            recipe: the precision of each component.
            name: name of the new variant.
            max_drop: the largest allowed `Evaluation.drop`; None sets no budget, and a variant that
                fails `check_accuracy` is not written.
            force: whether a variant of that name may be replaced.

        Raises:
            HybridDeployError: as `quantize_bundle` does; the bundle stays as it was.
        """
        layers_in_float: tuple[str, ...] = ()
        ranking: tuple[Sensitivity, ...] = ()
        scales = self.model.scales_for(recipe)
        if max_drop is not None:
            layers_in_float, ranking = self._choose_layers_in_float(recipe, max_drop)
        self.progress("rewrite", 0, 1)
        graphs = self._graphs(recipe, layers_in_float)
        self.progress("rewrite", 1, 1)
        with staged_variant(self.job.bundle, name, force=force) as staged:
            trial = self._write(staged, recipe, graphs, scales, layers_in_float)
            if recipe.is_emulated:
                evaluation = self._evaluate_emulation(recipe, layers_in_float)
            else:
                evaluation = self._evaluate_variant(trial, staged.folder.name)
            if max_drop is None:
                check_accuracy(evaluation, name)
        bundle = open_bundle(self.job.bundle.folder)
        size_bytes = bundle.variant_size_bytes(name)
        return QuantizeReport(
            bundle=bundle,
            variant=name,
            precision=recipe.name,
            evaluation=replace(evaluation, variant=name, size_bytes=size_bytes),
            samples=0 if scales is None else scales.provenance.samples,
            skipped=self.job.skipped,
            emulated=recipe.is_emulated,
            layers_in_float=layers_in_float,
            layers_in_8_bits=self._in_8_bits(recipe),
            ranking=ranking,
            tensors_in_float32=self._tensors_in_float32(recipe),
        )

    def evaluate(self, recipe: Recipe, threads: int | None) -> Candidate:
        """Evaluates and times a variant that is not added to the bundle.

        Args:
            recipe: the precision of each component.
            threads: number of CPU threads of one operator in the timed runs; None leaves the choice
                to the backend.

        Returns:
            The candidate; if the variant fails, its verdict states why.

        Raises:
            UsageError: the recipe needs samples, or a metric fails.
        """
        name, source = recipe.name, self.model.variant
        try:
            graphs = self._graphs(recipe)
            with trial_variant(self.job.bundle, source, name, recipe, graphs) as bundle:
                evaluation = self._evaluate_variant(bundle, name)
                bundles = {source: self.job.bundle, name: bundle}
                speed = measure_speeds(bundles, source, self.job.evaluation_set, threads)[name]
        except UsageError:
            raise
        except HybridDeployError as error:
            nan = float("nan")
            return Candidate(recipe, None, nan, nan, nan, f"failed: {error}")
        return Candidate(
            recipe, evaluation, speed.total_ms, speed.speedup, speed.speedup_lower_quartile, ""
        )

    def _choose_layers_in_float(
        self, recipe: Recipe, max_drop: float
    ) -> tuple[tuple[str, ...], tuple[Sensitivity, ...]]:
        """Returns the layers that must stay in float, and the ranking that they come from."""
        fully_quantized = self._evaluate_trial(recipe, ())
        if fully_quantized.drop <= max_drop:
            return (), ()
        if not recipe.quantizes:
            raise CalibrationError(
                f"the budget of {max_drop:g} {fully_quantized.drop_unit} does not hold: "
                f"{recipe.name} loses {fully_quantized.drop:.2f}; no variant was written"
            )
        ranking = self._rank(_without_bfloat16(recipe))
        choice = find_layers_in_float(
            max_drop, ranking, lambda names: self._evaluate_trial(recipe, names)
        )
        return choice.names, tuple(ranking)

    def _graphs(
        self, recipe: Recipe, layers_in_float: Sequence[str] = ()
    ) -> dict[GraphRole, ir.Model]:
        """Returns the graphs of a variant."""
        return self.model.quantized(recipe, layers_in_float, self._in_8_bits(recipe))

    def _in_8_bits(self, recipe: Recipe) -> tuple[str, ...]:
        """Returns the layers of the decoder that have 8 bits where most have 4."""
        if not recipe.uses_moments or self.model.samples is None:
            return ()
        if recipe.block_size not in self._layers_in_8_bits:
            self._layers_in_8_bits[recipe.block_size] = self._choose_layers_in_8_bits(recipe)
        return self._layers_in_8_bits[recipe.block_size]

    def _choose_layers_in_8_bits(self, recipe: Recipe) -> tuple[str, ...]:
        decoder = [layer for layer in self.model.layers if layer.name.startswith("decoder/")]
        if not can_rank(decoder):
            return ()
        ranking = self._rank(replace(recipe, encoder=EncoderForm.FLOAT))
        projection = self.model.projection
        others = [sensitivity for sensitivity in ranking if sensitivity.layer != projection]
        return layers_in_8_bits(others, projection, recipe.block_size)

    def _rank(self, recipe: Recipe) -> list[Sensitivity]:
        if self._ranking_teacher is None:
            samples = self.job.evaluation_set.evenly_spaced(_RANKING_SAMPLES)
            source = self.model.variant
            self._ranking_teacher = Teacher(self.job.bundle, source, samples, threads=1)
        return rank_layers(self.model, recipe, self._ranking_teacher, self.progress)

    def _evaluate_trial(self, recipe: Recipe, layers_in_float: Sequence[str]) -> Evaluation:
        """Evaluates a variant that is not added to the bundle."""
        if recipe.is_emulated:
            return self._evaluate_emulation(recipe, layers_in_float)
        graphs = self._graphs(recipe, layers_in_float)
        source, name = self.model.variant, recipe.name
        with trial_variant(self.job.bundle, source, name, recipe, graphs) as bundle:
            return self._evaluate_variant(bundle, name)

    def _evaluate_variant(self, bundle: Bundle, name: str) -> Evaluation:
        source, samples = self.model.variant, self.job.evaluation_set
        if self._reference_outputs is None:
            self._reference_outputs = decode_all(
                bundle, source, samples, self.progress, stage="reference"
            )
        if self._teacher is None:
            self._teacher = Teacher(bundle, source, samples)
        return evaluate(
            bundle,
            source,
            name,
            samples,
            metric=self.job.metric,
            normalizer=self.job.normalizer,
            progress=self.progress,
            reference=self._reference_outputs,
            teacher=self._teacher,
        )

    def _evaluate_emulation(self, recipe: Recipe, layers_in_float: Sequence[str]) -> Evaluation:
        """Evaluates float graphs that round to bfloat16 in the components that are bfloat16."""
        float_recipe = _without_bfloat16(recipe)
        graphs = self.model.quantized(float_recipe, layers_in_float)
        for role, model in graphs.items():
            form = recipe.encoder if role is GraphRole.ENCODER else recipe.decoder
            if form.value == "bf16":
                emulate_bfloat16(model)
        source = self.model.variant
        with trial_variant(self.job.bundle, source, _EMULATION, float_recipe, graphs) as bundle:
            return self._evaluate_variant(bundle, _EMULATION)

    def _write(
        self,
        staged: StagedVariant,
        recipe: Recipe,
        graphs: Mapping[GraphRole, ir.Model],
        scales: Scales | None,
        layers_in_float: Sequence[str],
    ) -> Bundle:
        """Fills the staging folder; returns the bundle with that folder as one more variant."""
        bundle, source = self.job.bundle, self.model.variant
        specs = save_graphs(graphs, staged.folder, staged.home, bundle.manifest.dims)
        if scales is not None:
            (staged.folder / SCALES_FILE).write_bytes(encode_scales(scales))
        provenance = _provenance(source, recipe, scales, layers_in_float, self._in_8_bits(recipe))
        staged.variant = described_variant(bundle, source, recipe, specs, provenance)
        return with_variant(bundle, staged.folder.name, staged.variant, staged.folder)

    def _tensors_in_float32(self, recipe: Recipe) -> tuple[str, ...]:
        if not recipe.has_float16:
            return ()
        overflowing = self.model.overflowing_tensors.items()
        return tuple(
            f"{role.value}/{name}" for role, names in overflowing for name in sorted(names)
        )


def _without_bfloat16(recipe: Recipe) -> Recipe:
    """Returns the recipe with float32 in place of bfloat16."""
    encoder, decoder = recipe.encoder, recipe.decoder
    return replace(
        recipe,
        encoder=EncoderForm.FLOAT if encoder is EncoderForm.BFLOAT16 else encoder,
        decoder=DecoderForm.FLOAT if decoder is DecoderForm.BFLOAT16 else decoder,
    )


def _provenance(
    source: str,
    recipe: Recipe,
    scales: Scales | None,
    layers_in_float: Sequence[str],
    layers_in_8_bits: Sequence[str],
) -> str:
    """Returns the manifest's line on how a variant was made."""
    line = f"hybrid-deploy {__version__} from {source}"
    if recipe.floats != FLOATS[0]:
        line += f", other floats {recipe.floats}"
    if recipe.block_size is not None:
        line += f", blocks of {recipe.block_size}"
    if scales is not None:
        origin = scales.provenance
        line += f", {origin.method} over {origin.samples} samples {origin.samples_sha256[:12]}"
    if layers_in_8_bits:
        line += f", 8 bits: {' '.join(layers_in_8_bits)}"
    return f"{line}, float: {' '.join(layers_in_float)}" if layers_in_float else line

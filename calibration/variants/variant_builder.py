"""Making variants of a float model: rewritten, evaluated, and added to the bundle or given up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from hybrid_deploy import __version__
from hybrid_deploy.bundle.bundle import Bundle, StagedVariant, open_bundle, staged_variant
from hybrid_deploy.calibration.evaluation.decode_all import DecodedSet, decode_all
from hybrid_deploy.calibration.evaluation.evaluate import Evaluation, evaluate
from hybrid_deploy.calibration.evaluation.logit_divergence import Teacher
from hybrid_deploy.calibration.half_precision.bfloat16_emulation import emulate_bfloat16
from hybrid_deploy.calibration.recipes import FLOATS, DecoderForm, EncoderForm, Recipe
from hybrid_deploy.calibration.samples.samples import SkippedSample
from hybrid_deploy.calibration.statistics.scales import SCALES_FILE, Scales, encode_scales
from hybrid_deploy.calibration.variants.accuracy_budget import find_layers_in_float
from hybrid_deploy.calibration.variants.auto_select import Candidate, measure_speeds
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

_EMULATION = "emulation"
_RANKING_SAMPLES = 8


@dataclass(frozen=True)
class QuantizeReport:
    """What a quantization did.

    Attributes:
        bundle: the bundle as it is now.
        variant: name of the new variant.
        precision: name of its precision.
        evaluation: how it compares with the float variant.
        samples: how many samples gave the scales; 0 if none were needed.
        skipped: samples that could not be used and were left out.
        emulated: whether its tokens are those of an emulation in float32, since no CPU kernels
            compute in the precision.
        kept: layers that stay float so that the budget holds.
        ranking: the layers by what each costs alone; empty where nobody had to know.
        wide: tensors that stay float32, since float16 overflowed on the samples.
    """

    bundle: Bundle
    variant: str
    precision: str
    evaluation: Evaluation
    samples: int
    skipped: tuple[SkippedSample, ...] = ()
    emulated: bool = False
    layers_in_float: tuple[str, ...] = ()
    ranking: tuple[Sensitivity, ...] = ()
    tensors_in_float32: tuple[str, ...] = ()


@dataclass
class VariantBuilder:
    """Makes the variants of one job.

    Attributes:
        job: the float model, and what its variants are compared on.
        progress: called with how far each stage is.
    """

    job: QuantizationJob
    progress: Progress
    _reference_outputs: DecodedSet | None = field(default=None)
    _teacher: Teacher | None = field(default=None)

    @property
    def model(self) -> FloatModel:
        """The float variant."""
        return self.job.model

    def build(
        self, recipe: Recipe, name: str, max_drop: float | None, *, force: bool
    ) -> QuantizeReport:
        """Makes a variant, evaluates it, and adds it to the bundle."""
        kept: tuple[str, ...] = ()
        ranking: tuple[Sensitivity, ...] = ()
        scales = self.model.scales_for(recipe)
        if max_drop is not None:
            kept, ranking = self._choose_layers_in_float(recipe, max_drop)
        self.progress("rewrite", 0, 1)
        graphs = self.model.quantized(recipe, kept)
        with staged_variant(self.job.bundle, name, force=force) as staged:
            trial = self._write(staged, recipe, graphs, scales, kept)
            if recipe.is_emulated:
                evaluation = self._evaluate_emulation(recipe, kept)
            else:
                evaluation = self._evaluate_variant(trial, staged.folder.name)
        done = open_bundle(self.job.bundle.folder)
        size_bytes = done.variant_size_bytes(name)
        return QuantizeReport(
            bundle=done,
            variant=name,
            precision=recipe.name,
            evaluation=replace(evaluation, variant=name, size_bytes=size_bytes),
            samples=0 if scales is None else scales.provenance.samples,
            skipped=self.job.skipped,
            emulated=recipe.is_emulated,
            layers_in_float=kept,
            ranking=ranking,
            tensors_in_float32=self._tensors_in_float32(recipe),
        )

    def evaluate(self, recipe: Recipe, threads: int | None) -> Candidate:
        """Evaluates and times a variant that does not enter the bundle."""
        name, source = recipe.name, self.model.variant
        try:
            graphs = self.model.quantized(recipe)
            with trial_variant(self.job.bundle, source, name, recipe, graphs) as bundle:
                evaluation = self._evaluate_variant(bundle, name)
                bundles = {source: self.job.bundle, name: bundle}
                speed = measure_speeds(bundles, source, self.job.evaluation_set, threads)[name]
        except UsageError:
            raise
        except HybridDeployError as error:
            unknown = float("nan")
            return Candidate(recipe, None, unknown, unknown, unknown, f"failed: {error}")
        return Candidate(
            recipe, evaluation, speed.total_ms, speed.speedup, speed.speedup_lower_quartile, ""
        )

    def _choose_layers_in_float(
        self, recipe: Recipe, max_drop: float
    ) -> tuple[tuple[str, ...], tuple[Sensitivity, ...]]:
        """Finds the layers that have to stay float, and the ranking that led to them."""
        whole = self._evaluate_trial(recipe, ())
        if whole.drop <= max_drop:
            return (), ()
        if not recipe.quantizes:
            raise CalibrationError(
                f"the budget of {max_drop:g} {whole.drop_unit} does not hold: {recipe.name} loses "
                f"{whole.drop:.2f}; no variant was written"
            )
        some = self.job.evaluation_set.evenly_spaced(_RANKING_SAMPLES)
        teacher = Teacher(self.job.bundle, self.model.variant, some, threads=1)
        ranking = rank_layers(self.model, _in_float(recipe), teacher, self.progress)
        kept = find_layers_in_float(
            max_drop, ranking, lambda names: self._evaluate_trial(recipe, names)
        )
        return kept.names, tuple(ranking)

    def _evaluate_trial(self, recipe: Recipe, kept: Sequence[str]) -> Evaluation:
        """Evaluates a variant that does not enter the bundle."""
        if recipe.is_emulated:
            return self._evaluate_emulation(recipe, kept)
        graphs = self.model.quantized(recipe, kept)
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
            progress=self.progress,
            reference=self._reference_outputs,
            teacher=self._teacher,
        )

    def _evaluate_emulation(self, recipe: Recipe, kept: Sequence[str]) -> Evaluation:
        """Evaluates float graphs that round as bfloat16 does where the recipe says so."""
        in_float = _in_float(recipe)
        graphs = self.model.quantized(in_float, kept)
        for role, model in graphs.items():
            form = recipe.encoder if role is GraphRole.ENCODER else recipe.decoder
            if form.value == "bf16":
                emulate_bfloat16(model)
        source = self.model.variant
        with trial_variant(self.job.bundle, source, _EMULATION, in_float, graphs) as bundle:
            return self._evaluate_variant(bundle, _EMULATION)

    def _write(
        self,
        staged: StagedVariant,
        recipe: Recipe,
        graphs: Mapping[GraphRole, ir.Model],
        scales: Scales | None,
        kept: Sequence[str],
    ) -> Bundle:
        """Fills the staging folder; gives the bundle as if the folder were a variant."""
        bundle, source = self.job.bundle, self.model.variant
        specs = save_graphs(graphs, staged.folder, staged.home, bundle.manifest.dims)
        if scales is not None:
            (staged.folder / SCALES_FILE).write_bytes(encode_scales(scales))
        provenance = _provenance(source, recipe, scales, kept)
        staged.variant = described_variant(bundle, source, recipe, specs, provenance)
        return with_variant(bundle, staged.folder.name, staged.variant, staged.folder)

    def _tensors_in_float32(self, recipe: Recipe) -> tuple[str, ...]:
        if not recipe.has_float16:
            return ()
        wide = self.model.overflowing_tensors.items()
        return tuple(f"{role.value}/{name}" for role, names in wide for name in sorted(names))


def _in_float(recipe: Recipe) -> Recipe:
    """Returns a recipe that leaves float32 what would be bfloat16."""
    encoder, decoder = recipe.encoder, recipe.decoder
    return replace(
        recipe,
        encoder=EncoderForm.FLOAT if encoder is EncoderForm.BFLOAT16 else encoder,
        decoder=DecoderForm.FLOAT if decoder is DecoderForm.BFLOAT16 else decoder,
    )


def _provenance(source: str, recipe: Recipe, scales: Scales | None, kept: Sequence[str]) -> str:
    made = f"hybrid-deploy {__version__} from {source}"
    if recipe.floats != FLOATS[0]:
        made += f", other floats {recipe.floats}"
    if recipe.block_size is not None:
        made += f", blocks of {recipe.block_size}"
    if scales is not None:
        origin = scales.provenance
        made += f", {origin.method} over {origin.samples} samples {origin.samples_sha256[:12]}"
    return f"{made}, float: {' '.join(kept)}" if kept else made

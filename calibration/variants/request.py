"""Opens and checks the inputs of a quantization before any work begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hybrid_deploy.accuracy.default_normalizer import normalizer_for
from hybrid_deploy.accuracy.normalizers import AS_DECODED, Normalizer
from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.paths import check_variant_name
from hybrid_deploy.bundle.replacement import check_variant_output
from hybrid_deploy.calibration.evaluation.evaluate import check_metric
from hybrid_deploy.calibration.evaluation.metrics import Metric, load_metric
from hybrid_deploy.calibration.graphs.float_graphs import check_float_variant
from hybrid_deploy.calibration.recipes import Recipe
from hybrid_deploy.calibration.samples.evaluation_set import (
    EvaluationSet,
    EvaluationSource,
    open_evaluation_set,
)
from hybrid_deploy.calibration.samples.samples import (
    Samples,
    SampleSource,
    SkippedSample,
    example_of,
    samples_of,
)
from hybrid_deploy.calibration.statistics.range_methods import range_method
from hybrid_deploy.calibration.statistics.scales import Scales, check_scales, read_scales
from hybrid_deploy.calibration.variants.float_model import FloatModel
from hybrid_deploy.device_support import check_precision, device_of
from hybrid_deploy.errors import UsageError
from hybrid_deploy.progress import Progress

MAX_DEFAULT_EVALUATION_SAMPLES = 100
"""The largest number of golden and calibration samples that form the default evaluation set."""


@dataclass(frozen=True)
class QuantizationInputs:
    """The samples of a quantization: those to calibrate with, and those to evaluate variants on.

    Attributes:
        samples: typical inputs to calibrate with, as `samples_of` takes them.
        golden: whether to calibrate with the bundle's golden samples too.
        skip_bad: whether to leave out samples that cannot be used.
        scales: path of a `scales.json`, used in place of samples.
        method: name of the method that chooses ranges, one of `range_methods.METHODS`.
        evaluation: the samples to compare variants on, with true texts where they are known; None
            takes golden and calibration samples.
        metric: name of the metric: `cer`, `wer`, `exact` or `package.module:function`; None
            measures the error rates only.
        normalize: name of the normaliser that texts pass before their errors are counted:
            `whisper`, `basic` or `none`; None takes the bundle's default.
    """

    samples: SampleSource | None = None
    golden: bool = False
    skip_bad: bool = False
    scales: Path | None = None
    method: str = "minmax"
    evaluation: EvaluationSource | None = None
    metric: str | None = None
    normalize: str | None = None


@dataclass(frozen=True)
class QuantizationJob:
    """The opened and checked inputs of a quantization.

    Attributes:
        model: the float variant to quantize.
        evaluation_set: the samples that its variants are compared on.
        metric: the requested metric of texts; None if none was requested.
        normalizer: what texts pass before their errors are counted.
    """

    model: FloatModel
    evaluation_set: EvaluationSet
    metric: Metric | None
    normalizer: Normalizer = AS_DECODED

    @property
    def bundle(self) -> Bundle:
        """The bundle that has the float variant."""
        return self.model.bundle

    @property
    def skipped(self) -> tuple[SkippedSample, ...]:
        """Samples that cannot be used and were left out."""
        calibration = () if self.model.samples is None else self.model.samples.skipped
        return calibration + self.evaluation_set.skipped


def open_job(
    path: str | Path, source: str, data: QuantizationInputs, progress: Progress
) -> QuantizationJob:
    """Opens the bundle, the samples, the scales and the metric of a quantization.

    Args:
        path: the bundle's folder.
        source: name of the float32 variant to quantize.
        data: the samples, or scales in place of samples.
        progress: called during calibration.

    Raises:
        UsageError: the method, the metric or the normaliser is unknown, the source is not float32,
            or both scales and samples are given.
        InputError: the bundle, the variant or a sample is missing or cannot be read.
        CalibrationError: there is no sample, or the scales belong to another model.
        MissingDependencyError: the normaliser's library is not installed.
    """
    range_method(data.method)
    metric = None if data.metric is None else load_metric(data.metric)
    bundle = open_bundle(path)
    check_float_variant(bundle, source)
    if data.scales is not None and (data.samples is not None or data.golden):
        raise UsageError("scales come from a file or from samples; give one of the two")
    samples, golden = _open_samples(bundle, source, data)
    calibration = _concatenated(golden if data.golden else None, samples)
    scales = _scales_from_file(data, bundle, source)
    shown = golden or example_of(bundle, source)
    model = FloatModel(
        bundle, source, calibration, data.method, progress, golden=shown, scales_from_file=scales
    )
    evaluation_set = _evaluation_set(bundle, data, samples, golden)
    if metric is not None:
        check_metric(metric, evaluation_set)
    return QuantizationJob(model, evaluation_set, metric, _normalizer(bundle, data, evaluation_set))


def _normalizer(bundle: Bundle, data: QuantizationInputs, samples: EvaluationSet) -> Normalizer:
    """Returns the normaliser of the evaluation, once its library and the true texts are checked.

    Without true texts there is nothing to normalise, so that no library is needed.
    """
    labels = [text for text in samples.expected_texts if text is not None]
    if labels:
        return normalizer_for(bundle, labels, data.normalize)
    if data.normalize is not None:
        raise UsageError(
            "--normalize needs true texts, and no sample has one; name a folder with a labels.csv "
            "(columns file, text)"
        )
    return AS_DECODED


def check_recipe(
    bundle: Bundle, source: str, recipe: Recipe, name: str, *, target: str | None, force: bool
) -> None:
    """Checks that a variant of a recipe can be added to a bundle.

    Args:
        bundle: the bundle.
        source: name of the float32 variant to quantize.
        recipe: the recipe of the new variant.
        name: name of the new variant.
        target: the device, one of `device_support.DEVICES`; None allows every precision.
        force: whether a variant of that name may be replaced.

    Raises:
        UsageError: the name cannot name a variant, the target or the opset of the source lacks the
            precision, or the new variant would replace its source.
        OutputExistsError: the bundle has that variant and `force` is False.
        InputError: the folder of that variant holds more than the variant.
    """
    check_variant_name(name)
    if target is not None:
        device = device_of(target)
        check_precision(device, recipe.encoder.value, recipe.decoder.value, recipe.floats)
    opset = bundle.variant(source).opset
    if opset < recipe.min_opset:
        raise UsageError(
            f"{recipe.name} needs operators of opset {recipe.min_opset}, variant {source} of "
            f"{bundle.folder} has {opset}; export it with --opset {recipe.export_opset}"
        )
    if name == source:
        raise UsageError(f"variant {name} would replace its own source; give another name")
    check_variant_output(bundle.folder, bundle.manifest, name, force=force)


def _open_samples(
    bundle: Bundle, variant: str, data: QuantizationInputs
) -> tuple[Samples | None, Samples | None]:
    """Opens the calibration samples and the golden samples; None where there are none."""
    samples = golden = None
    if data.samples is not None:
        samples = samples_of(bundle, data.samples, skip_bad=data.skip_bad, variant=variant)
    if data.golden or bundle.manifest.real_golden:
        golden = samples_of(bundle, golden=True, skip_bad=data.skip_bad, variant=variant)
    return samples, golden


def _concatenated(first: Samples | None, second: Samples | None) -> Samples | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _scales_from_file(data: QuantizationInputs, bundle: Bundle, source: str) -> Scales | None:
    if data.scales is None:
        return None
    scales = read_scales(data.scales)
    check_scales(scales, bundle, source)
    return scales


def _evaluation_set(
    bundle: Bundle, data: QuantizationInputs, samples: Samples | None, golden: Samples | None
) -> EvaluationSet:
    """Opens the given evaluation set, or makes one of golden and calibration samples.

    Without any samples the set is the example of the export, or one input of zeros.
    """
    if data.evaluation is not None:
        return open_evaluation_set(data.evaluation, bundle, skip_bad=data.skip_bad)
    if samples is None:
        return (
            open_evaluation_set(None, bundle)
            if golden is None
            else EvaluationSet.unlabelled(golden)
        )
    both = samples if golden is None else golden + samples
    return EvaluationSet.unlabelled(both).evenly_spaced(MAX_DEFAULT_EVALUATION_SAMPLES)

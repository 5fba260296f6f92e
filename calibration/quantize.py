"""Quantization: makes a quantized variant of a float variant and adds it to the bundle.

The steps are: calibrate, rewrite the graphs, evaluate, add the variant.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hybrid_deploy.argument_checks import check_text, is_number, shown
from hybrid_deploy.calibration.recipes import recipe_for
from hybrid_deploy.calibration.samples.samples import SampleSource, SkippedSample
from hybrid_deploy.calibration.variants.auto_select import (
    CHOSEN_VERDICT,
    Candidate,
    choose_fastest,
    cpu_candidates,
)
from hybrid_deploy.calibration.variants.request import QuantizationInputs, check_recipe, open_job
from hybrid_deploy.calibration.variants.variant_builder import QuantizeReport, VariantBuilder
from hybrid_deploy.contract import FLOAT_VARIANT
from hybrid_deploy.errors import UsageError
from hybrid_deploy.progress import Progress, silent
from hybrid_deploy.system_errors import typed_errors

DEFAULT_MAX_DROP = 0.5
"""The budget of `quantize_automatically`, in `Evaluation.drop_unit`."""


@dataclass(frozen=True)
class AutomaticReport:
    """The result of an automatic quantization.

    Attributes:
        candidates: the variants that were evaluated and timed.
        chosen: report on the variant that was added; None if no variant was added.
        skipped: samples that could not be used and were left out.
    """

    candidates: tuple[Candidate, ...]
    chosen: QuantizeReport | None
    skipped: tuple[SkippedSample, ...] = ()


@typed_errors()
def quantize_bundle(
    path: str | Path,
    precision: str | None = None,
    samples: SampleSource | QuantizationInputs | None = None,
    *,
    encoder: str | None = None,
    decoder: str | None = None,
    block_size: int | None = None,
    floats: str | None = None,
    target: str | None = None,
    max_drop: float | None = None,
    name: str | None = None,
    source: str = FLOAT_VARIANT,
    force: bool = False,
    progress: Progress = silent,
) -> QuantizeReport:
    """Adds a quantized variant to a bundle; the bundle stays as it was if anything fails.

    Args:
        path: the bundle's folder.
        precision: name of the precision, one of `recipes.PRECISIONS`; may be None if `encoder` or
            `decoder` is given.
        samples: typical inputs to calibrate with, or `QuantizationInputs`, which may also hold
            scales, an evaluation set and a metric.
        encoder: a form of `EncoderForm` in place of the precision's form of the encoder.
        decoder: a form of `DecoderForm` in place of the precision's form of the decoder.
        block_size: number of decoder weights that share a scale; None leaves it to the precision.
        floats: type of the numbers that are not quantized, `fp32` or `fp16`; None means `fp32`.
        target: the device, one of `device_support.DEVICES`; a precision that it lacks is an error.
        max_drop: how much worse than float the variant may be, in `Evaluation.drop_unit`; the most
            sensitive layers stay in float if needed. None sets no limit.
        name: name of the new variant; None takes the precision's name.
        source: name of the float32 variant to quantize.
        force: whether to replace a variant of that name.
        progress: called during all stages.

    Raises:
        UsageError: unknown precision, method, metric or target, the target lacks the precision,
            samples are missing, or the source is not float32.
        InputError: the bundle, the source variant or a sample is missing or cannot be read.
        OutputExistsError: the bundle has that variant and `force` is not given.
        CalibrationError: an activation or a weight does not fit the precision, or the drop exceeds
            `max_drop` even with all layers in float.
        BackendError: the new variant does not run, or its logits are not finite.
    """
    for what, text in {
        "precision": precision, "encoder": encoder, "decoder": decoder, "floats": floats,
        "target": target, "name": name, "source": source,
    }.items():  # fmt: skip
        if text is not None:
            check_text(what, text)
    if max_drop is not None:
        _check_budget(max_drop)
    recipe = recipe_for(
        precision, encoder=encoder, decoder=decoder, block_size=block_size, floats=floats
    )
    name = name or recipe.name
    data = samples if isinstance(samples, QuantizationInputs) else QuantizationInputs(samples)
    job = open_job(path, source, data, progress)
    check_recipe(job.bundle, source, recipe, name, target=target, force=force)
    return VariantBuilder(job, progress).build(recipe, name, max_drop, force=force)


def quantize_automatically(
    path: str | Path,
    data: QuantizationInputs,
    *,
    max_drop: float = DEFAULT_MAX_DROP,
    threads: int | None = None,
    block_size: int | None = None,
    name: str | None = None,
    source: str = FLOAT_VARIANT,
    force: bool = False,
    progress: Progress = silent,
) -> AutomaticReport:
    """Adds the fastest variant that holds a budget, as measured with ONNX Runtime on this CPU.

    Only a variant that is faster than the float variant is added.

    Args:
        path: the bundle's folder.
        data: the samples to calibrate with, and those that the variants are compared on.
        max_drop: how much worse than float a variant may be, in `Evaluation.drop_unit`.
        threads: number of CPU threads of one operator in the timed runs; None leaves the choice to
            the backend.
        block_size: number of decoder weights that share a scale; None leaves it to the recipe.
        name: name of the new variant; None takes the name of the chosen recipe.
        source: name of the float32 variant to quantize.
        force: whether to replace a variant of that name.
        progress: called during all stages.

    Raises:
        HybridDeployError: as `quantize_bundle` does.
    """
    _check_budget(max_drop)
    job = open_job(path, source, data, progress)
    recipes = cpu_candidates(block_size)
    for recipe in recipes:
        check_recipe(job.bundle, source, recipe, name or recipe.name, target="cpu", force=force)
    for recipe in recipes:
        job.model.scales_for(recipe)  # raises the error of missing samples before any evaluation
    builder = VariantBuilder(job, progress)
    candidates = choose_fastest([builder.evaluate(recipe, threads) for recipe in recipes], max_drop)
    chosen = next((c.recipe for c in candidates if c.verdict == CHOSEN_VERDICT), None)
    skipped = job.skipped
    if chosen is None:
        return AutomaticReport(tuple(candidates), None, skipped)
    report = builder.build(chosen, name or chosen.name, max_drop, force=force)
    return AutomaticReport(tuple(candidates), report, skipped)


def _check_budget(max_drop: float) -> None:
    if not (is_number(max_drop) and max_drop >= 0):
        raise UsageError(f"max_drop must be a number from 0 on, got {shown(max_drop)}")

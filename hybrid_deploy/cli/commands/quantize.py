"""`hybrid-deploy quantize`: a bundle and samples -> a smaller, faster variant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybrid_deploy.calibration.recipes import (
    BLOCK_SIZES,
    FLOATS,
    RECIPES,
    DecoderForm,
    EncoderForm,
)
from hybrid_deploy.calibration.statistics.range_methods import METHODS
from hybrid_deploy.cli.options.common import BUNDLE, FORCE, THREADS
from hybrid_deploy.cli.options.paths import PATH
from hybrid_deploy.cli.options.samples import (
    GOLDEN,
    NORMALIZE,
    SKIP_BAD,
    log_skipped,
)
from hybrid_deploy.cli.output import log, say
from hybrid_deploy.cli.progress import stage_bars
from hybrid_deploy.device_support import DEVICES
from hybrid_deploy.errors import UsageError

if TYPE_CHECKING:
    from hybrid_deploy.calibration.quantize import AutomaticReport
    from hybrid_deploy.calibration.variants.request import QuantizationInputs
    from hybrid_deploy.calibration.variants.variant_builder import QuantizeReport

_MOST_SHOWN_LAYERS = 15


@click.command(
    epilog="Example: hybrid-deploy quantize digits.bundle --precision int8 --samples lines/"
)
@BUNDLE
@click.option(
    "--precision", metavar="NAME",
    help=f"One of: {', '.join(f'{r.name} ({r.summary})' for r in RECIPES.values())}.",
)  # fmt: skip
@click.option(
    "--encoder", metavar="FORM",
    help=f"Another form for the encoder: {', '.join(form.value for form in EncoderForm)}.",
)  # fmt: skip
@click.option(
    "--decoder", metavar="FORM",
    help=f"Another form for the decoder: {', '.join(form.value for form in DecoderForm)}.",
)  # fmt: skip
@click.option(
    "--block", "block_size", type=int, metavar="SIZE",
    help=f"How many of the decoder's weights share a scale: {', '.join(map(str, BLOCK_SIZES))}; "
    "default: 128 where they divide so.",
)  # fmt: skip
@click.option(
    "--floats", type=click.Choice(FLOATS),
    help="Precision of what is not quantized; fp16 for GPUs. Default: fp32.",
)  # fmt: skip
@click.option(
    "--auto", "automatic", is_flag=True,
    help="Try the forms that suit this CPU, and add the fastest variant that holds --max-drop.",
)  # fmt: skip
@click.option(
    "--target", metavar="DEVICE",
    help=f"Refuse forms that this device does not compute in: {', '.join(DEVICES)}.",
)  # fmt: skip
@click.option(
    "--samples", type=PATH, metavar="FOLDER",
    help="Folder with typical inputs, or with .npz files of encoder inputs; activations in 8 "
    "bits need it, other variants are compared on it.",
)  # fmt: skip
@GOLDEN
@SKIP_BAD
@click.option(
    "--scales", type=PATH, metavar="FILE",
    help="A scales.json of `calibrate`, in place of samples.",
)  # fmt: skip
@click.option(
    "--method", default="minmax", show_default=True,
    help=f"How the range of an activation is chosen: {', '.join(METHODS)}.",
)  # fmt: skip
@click.option(
    "--eval", "evaluation", type=PATH, metavar="FOLDER",
    help="Inputs to compare the variant with float on, with a labels.csv (columns file, text) if "
    "the right texts are known; default: golden and calibration samples.",
)  # fmt: skip
@click.option(
    "--metric", help="cer, wer, exact or your package.module:function(expected, given), "
    "larger is better; default: cer. Your function gets the texts as they are decoded."
)  # fmt: skip
@NORMALIZE
@click.option(
    "--max-drop", type=click.FloatRange(min=0),
    help="How many points worse than float the variant may be (of the metric, or of CER, or "
    "percent of tokens without labels); layers go back to float until that holds.",
)  # fmt: skip
@click.option("--name", help="Name of the new variant; default: the precision.")
@THREADS
@FORCE
@click.option(
    "--format", "output_format", type=click.Choice(["text", "json"]),
    default="text", show_default=True, help="How the result is printed.",
)  # fmt: skip
def quantize(
    bundle: Path,
    precision: str | None,
    encoder: str | None,
    decoder: str | None,
    block_size: int | None,
    floats: str | None,
    automatic: bool,
    target: str | None,
    samples: Path | None,
    golden: bool,
    skip_bad: bool,
    scales: Path | None,
    method: str,
    evaluation: Path | None,
    metric: str | None,
    normalize: str | None,
    max_drop: float | None,
    name: str | None,
    threads: int | None,
    force: bool,
    output_format: str,
) -> None:
    """Add a quantized variant to BUNDLE.

    Both variants decode the same inputs before the new one is added; the bundle stays as it was
    when anything fails. Observations are kept in `calibration` of $HYBRID_DEPLOY_CACHE (default
    ~/.cache/hybrid_deploy): an interrupted run is resumed, and another method needs no new run.
    """
    from hybrid_deploy.calibration.quantize import quantize_bundle
    from hybrid_deploy.calibration.variants.request import QuantizationInputs

    data = QuantizationInputs(
        samples, golden, skip_bad, scales, method, evaluation, metric, normalize
    )
    if automatic:
        if precision or encoder or decoder or floats or target:
            raise UsageError(
                "--auto chooses the precision for this CPU; leave --precision, --encoder, "
                "--decoder, --floats and --target out"
            )
        _quantize_automatically(
            bundle, data, max_drop, threads, block_size, name, force, output_format
        )
        return
    with stage_bars() as show:
        report = quantize_bundle(
            bundle, precision, data, encoder=encoder, decoder=decoder, block_size=block_size,
            floats=floats, target=target, max_drop=max_drop, name=name, force=force, progress=show,
        )  # fmt: skip
    log_skipped(report.skipped)
    say(_json(report) if output_format == "json" else summary(report))
    _log_doubt(report)


def _log_doubt(report: QuantizeReport) -> None:
    """Says that a variant is probably useless: it decodes no sample as the float variant does."""
    agreement = report.evaluation.agreement
    if agreement.sequences and not agreement.same_sequences:
        log(
            f"no sequence of {report.variant} is as in {report.evaluation.reference}: check its "
            "texts before you use it, or give --max-drop, which adds no variant that is worse"
        )


def summary(report: QuantizeReport) -> str:
    """Returns the report of a quantization in a few lines."""
    from hybrid_deploy.calibration.evaluation.report import describe
    from hybrid_deploy.calibration.variants.sensitivity import COLUMNS
    from hybrid_deploy.report import render

    lines = [describe(report.evaluation)]
    if report.emulated:
        lines.append("emulated in float32: no CPU kernels compute in bfloat16")
    if report.layers_in_8_bits:
        count = len(report.layers_in_8_bits)
        lines.append(f"8 bits in place of 4: the {count} most sensitive layers of the decoder")
    if report.tensors_in_float32:
        lines.append(f"float32, since float16 overflows: {', '.join(report.tensors_in_float32)}")
    if report.ranking:
        rows = [layer.record() for layer in report.ranking[:_MOST_SHOWN_LAYERS]]
        lines.append(f"the most sensitive of {len(report.ranking)} layers, each quantized alone:")
        lines.append(render(rows, COLUMNS, "table").rstrip())
        lines.append(
            f"back in float to hold the budget: {', '.join(report.layers_in_float) or 'none'}"
        )
    return "\n".join(lines)


def _quantize_automatically(
    bundle: Path,
    data: QuantizationInputs,
    max_drop: float | None,
    threads: int | None,
    block_size: int | None,
    name: str | None,
    force: bool,
    output_format: str,
) -> None:
    from hybrid_deploy.calibration.quantize import DEFAULT_MAX_DROP, quantize_automatically

    budget = DEFAULT_MAX_DROP if max_drop is None else max_drop
    with stage_bars() as show:
        report = quantize_automatically(
            bundle, data, max_drop=budget, threads=threads, block_size=block_size, name=name,
            force=force, progress=show,
        )  # fmt: skip
    log_skipped(report.skipped)
    say(_auto_json(report) if output_format == "json" else _auto_text(report, budget))


def _auto_text(report: AutomaticReport, max_drop: float) -> str:
    from hybrid_deploy.calibration.variants.auto_select import COLUMNS
    from hybrid_deploy.report import render

    table = render(
        [candidate.record() for candidate in report.candidates], COLUMNS, "table"
    ).rstrip()
    if report.chosen is None:
        log("nothing was added: no variant is faster than float and within the budget")
        return table
    log(f"added {report.chosen.variant}, the fastest that loses at most {max_drop:g}")
    return f"{table}\n{summary(report.chosen)}"


def _auto_json(report: AutomaticReport) -> str:
    import json

    chosen = None if report.chosen is None else report.chosen.variant
    return json.dumps({"chosen": chosen, "candidates": [c.record() for c in report.candidates]})


def _json(report: QuantizeReport) -> str:
    import json

    from hybrid_deploy.calibration.evaluation.report import evaluation_record

    return json.dumps(
        {
            "bundle": str(report.bundle.folder),
            "variant": report.variant,
            "precision": report.precision,
            "calibration_samples": report.samples,
            "skipped": [
                {"sample": sample.name, "reason": sample.reason} for sample in report.skipped
            ],
            "emulated": report.emulated,
            "kept_float": list(report.layers_in_float),
            "in_8_bits": list(report.layers_in_8_bits),
            "wide": list(report.tensors_in_float32),
            "ranking": [layer.record() for layer in report.ranking],
            **evaluation_record(report.evaluation),
        }
    )

"""From a float variant of a bundle to a quantized one: calibrate, rewrite, check, commit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from hybrid_deploy import __version__
from hybrid_deploy.bundle import Bundle, StagedVariant, open_bundle, staged_variant
from hybrid_deploy.cache import cache_folder
from hybrid_deploy.calibration.agreement import Agreement, check_variant
from hybrid_deploy.calibration.batchnorm import fold_batchnorm
from hybrid_deploy.calibration.collect import observe_samples, origin_of
from hybrid_deploy.calibration.emulation import emulate_bfloat16
from hybrid_deploy.calibration.int8 import quantize_decoder_weights, quantize_encoder
from hybrid_deploy.calibration.observations import read_observations
from hybrid_deploy.calibration.precision import EncoderForm, Recipe, recipe_for
from hybrid_deploy.calibration.range_methods import method_of
from hybrid_deploy.calibration.samples import Samples, Source, open_samples
from hybrid_deploy.calibration.scales import SCALES_FILE, Scales, encode_scales
from hybrid_deploy.calibration.short_floats import shorten_floats
from hybrid_deploy.calibration.short_range import BFLOAT16, FLOAT16, ShortFloat
from hybrid_deploy.contract import GraphRole, Head
from hybrid_deploy.errors import CalibrationError, InputError, OutputExistsError, UsageError
from hybrid_deploy.manifest import Precision, Variant
from hybrid_deploy.onnx_files import load_graphs, save_graphs

FLOAT = "fp32"
_EMULATION = "emulation"
_SHORT: Mapping[str, ShortFloat] = {"fp16": FLOAT16, "bf16": BFLOAT16}

Progress = Callable[[str, int, int], None]
"""Told the stage, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class QuantizeReport:
    """What a quantization did.

    Attributes:
        bundle: the bundle as it is now.
        variant: name of the new variant.
        precision: name of its precision.
        size_bytes: of the new variant's files.
        float_size_bytes: of the float variant's files.
        samples: how many samples gave the scales; 0 if none were needed.
        agreement: how its tokens compare with the float variant's.
        emulated: whether its tokens are those of an emulation in float32, since no CPU kernels
            compute in the precision.
    """

    bundle: Bundle
    variant: str
    precision: str
    size_bytes: int
    float_size_bytes: int
    samples: int
    agreement: Agreement
    emulated: bool = False


def quantize_bundle(
    path: str | Path,
    precision: str,
    samples: Source | None = None,
    *,
    name: str | None = None,
    method: str = "minmax",
    source: str = FLOAT,
    force: bool = False,
    progress: Progress | None = None,
) -> QuantizeReport:
    """Adds a quantized variant to a bundle; the bundle stays as it was if anything fails.

    Args:
        path: the bundle's folder.
        precision: one of `precision.PRECISIONS`.
        samples: a folder, files, or encoder inputs by name (batch first), typical of the use.
        name: name of the new variant; the precision's if not given.
        method: how the range of an activation is chosen, one of `range_methods.METHODS`.
        source: name of the float32 variant to quantize.
        force: replace a variant of that name.
        progress: told how far each stage is.

    Raises:
        UsageError: unknown precision or method, samples are missing, or the source is not float32.
        InputError: the bundle, the source variant or a sample is missing or cannot be read.
        OutputExistsError: the bundle has that variant and `force` is not given.
        CalibrationError: an activation or a weight does not fit the precision.
        BackendError: the new variant does not run, or its logits are not finite.
    """
    recipe = recipe_for(precision)
    method_of(method)
    bundle = open_bundle(Path(path))
    name = name or recipe.name
    _check_request(bundle, source, recipe, name, force=force)
    given = None
    if samples is not None:
        given = open_samples(samples, bundle.manifest.preprocess, bundle.folder)
    report = progress or _silent
    graphs = prepared_graphs(bundle, source)
    scales = None
    if recipe.needs_scales:
        if given is None:
            raise UsageError(f"{precision} needs calibration samples; give --samples FOLDER")
        scales = _calibrate(bundle, source, graphs, given, method, report)
    report("rewrite", 0, 1)
    apply_recipe(recipe, graphs, scales)
    with staged_variant(bundle, name, force=force) as staged, TemporaryDirectory() as aside:
        trial = _write(bundle, source, staged, recipe, graphs, scales)
        tried = staged.folder.name
        if recipe.is_emulated:
            trial, tried = _emulation(bundle, source, Path(aside)), _EMULATION
        agreement = check_variant(trial, source, tried, given, report)
    done = open_bundle(bundle.folder)
    return QuantizeReport(
        bundle=done,
        variant=name,
        precision=precision,
        size_bytes=done.variant_size_bytes(name),
        float_size_bytes=done.variant_size_bytes(source),
        samples=0 if scales is None else scales.provenance.samples,
        agreement=agreement,
        emulated=recipe.is_emulated,
    )


def prepared_graphs(bundle: Bundle, variant: str) -> dict[GraphRole, ir.Model]:
    """Loads the float graphs in the form that the passes expect."""
    graphs = load_graphs(bundle, variant)
    for model in graphs.values():
        LiftConstantsToInitializersPass()(model)
        fold_batchnorm(model)
    return graphs


def apply_recipe(
    recipe: Recipe, graphs: Mapping[GraphRole, ir.Model], scales: Scales | None
) -> None:
    """Rewrites the graphs in place; `scales` are those of the encoder if the recipe needs them."""
    encoder = graphs[GraphRole.ENCODER]
    if recipe.encoder in _SHORT:
        shorten_floats(encoder, GraphRole.ENCODER, _SHORT[recipe.encoder])
    else:
        assert scales is not None, "an int8 encoder was calibrated"
        for_cpu = recipe.encoder is EncoderForm.INT8_CPU
        quantize_encoder(encoder, scales.of(GraphRole.ENCODER), for_cpu=for_cpu)
    for role, model in graphs.items():
        if role is GraphRole.ENCODER:
            continue
        if recipe.decoder in _SHORT:
            shorten_floats(model, role, _SHORT[recipe.decoder])
        else:
            quantize_decoder_weights(model)


def _silent(stage: str, done: int, total: int) -> None:
    """Drops progress that nobody asked for."""


def _check_request(bundle: Bundle, source: str, recipe: Recipe, name: str, *, force: bool) -> None:
    precision = bundle.variant(source).precision
    if (precision.encoder, precision.decoder) != (FLOAT, FLOAT):
        raise UsageError(
            f"variant {source} of {bundle.folder} is already quantized "
            f"(encoder {precision.encoder}, decoder {precision.decoder}); quantize {FLOAT}"
        )
    if bundle.variant(source).head is not Head.LOGITS:
        raise UsageError(
            f"variant {source} of {bundle.folder} returns {bundle.variant(source).head.value} in "
            "place of the logits; export it with --head logits to quantize it"
        )
    opset = bundle.variant(source).opset
    if opset < recipe.oldest_opset:
        raise UsageError(
            f"{recipe.name} needs operators of opset {recipe.oldest_opset}, variant {source} of "
            f"{bundle.folder} has {opset}; export it with --opset 24"
        )
    if name == source:
        raise UsageError(f"variant {name} would replace its own source; give another name")
    if name in bundle.manifest.variants and not force:
        raise OutputExistsError(f"variant {name} of {bundle.folder}")


def _calibrate(
    bundle: Bundle,
    source: str,
    graphs: Mapping[GraphRole, ir.Model],
    samples: Samples,
    method: str,
    report: Progress,
) -> Scales:
    def sample_done(done: int) -> None:
        report("calibrate", done, len(samples))

    report("calibrate", 0, len(samples))
    state = _state_file(bundle, source, samples)
    return observe_samples(
        bundle, source, graphs, samples, state=state, progress=sample_done
    ).scales(method)


def _state_file(bundle: Bundle, source: str, samples: Samples) -> Path | None:
    """Names the file that keeps the observations of these samples, for another run or method.

    None where nothing can be written.
    """
    made_with = msgspec.json.encode([origin_of(bundle, source), samples.sha256])
    path = cache_folder("calibration") / f"{hashlib.sha256(made_with).hexdigest()}.npz"
    try:
        read_observations(path)
    except CalibrationError:
        path.unlink(missing_ok=True)  # damaged, and made again
    except InputError:
        pass
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return path if os.access(path.parent, os.W_OK) else None


def _write(
    bundle: Bundle,
    source: str,
    staged: StagedVariant,
    recipe: Recipe,
    graphs: Mapping[GraphRole, ir.Model],
    scales: Scales | None,
) -> Bundle:
    """Fills the staging folder; gives the bundle as if the folder were a variant of that name."""
    specs = save_graphs(graphs, staged.folder, staged.home, bundle.manifest.dims)
    if scales is not None:
        (staged.folder / SCALES_FILE).write_bytes(encode_scales(scales))
    staged.variant = Variant(
        precision=Precision(encoder=recipe.encoder.value, decoder=recipe.decoder.value),
        opset=bundle.variant(source).opset,
        encoder=specs[GraphRole.ENCODER],
        step=specs[GraphRole.STEP],
        prefill=specs.get(GraphRole.PREFILL),
        provenance=_provenance(source, scales),
    )
    trial = msgspec.structs.replace(
        staged.variant,
        **{
            role.value: msgspec.structs.replace(
                spec, file=f"{staged.folder.name}/{Path(spec.file).name}"
            )
            for role, spec in specs.items()
        },
    )
    variants = bundle.manifest.variants | {staged.folder.name: trial}
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, variants=variants))


def _emulation(bundle: Bundle, source: str, folder: Path) -> Bundle:
    """Writes float graphs that round as bfloat16 does; gives the bundle with them as a variant."""
    graphs = prepared_graphs(bundle, source)
    for model in graphs.values():
        emulate_bfloat16(model)
    specs = save_graphs(graphs, folder, str(folder))
    variant = msgspec.structs.replace(
        bundle.variant(source), **{role.value: spec for role, spec in specs.items()}
    )
    variants = bundle.manifest.variants | {_EMULATION: variant}
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, variants=variants))


def _provenance(source: str, scales: Scales | None) -> str:
    made = f"hybrid-deploy {__version__} from {source}"
    if scales is None:
        return made
    origin = scales.provenance
    return f"{made}, {origin.method} over {origin.samples} samples {origin.samples_sha256[:12]}"

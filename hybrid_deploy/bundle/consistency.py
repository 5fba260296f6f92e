"""Checks the fields of a manifest against each other, and against those of another manifest.

msgspec has checked each field alone before.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import msgspec

from hybrid_deploy.bundle.field_types import LARGEST_INPUT_PIXELS
from hybrid_deploy.bundle.input_specs import (
    AudioInput,
    EncoderInput,
    FilterBank,
    FramesInput,
    ImageInput,
    LogMel,
    PatchesInput,
    PixelsInput,
    TilesInput,
)
from hybrid_deploy.bundle.manifest import FileRecord, Manifest, Variant
from hybrid_deploy.bundle.paths import is_variant_name, top_folder
from hybrid_deploy.bundle.pixel_steps import PixelStep
from hybrid_deploy.contract import (
    CANDIDATES,
    LOGITS,
    NEXT_TOKEN,
    TOKEN,
    TOKENS,
    TOP_SCORES,
    TOP_TOKENS,
    GraphRole,
    Head,
)
from hybrid_deploy.errors import BundleError

_HEADS = {
    Head.LOGITS: {LOGITS},
    Head.ARGMAX: {NEXT_TOKEN},
    Head.TOPK: {TOP_SCORES, TOP_TOKENS},
}
"""Outputs of the decoder graphs besides the caches."""

_CHANNELS = {"L": 1, "RGB": 3}
_LARGEST_TABLE = 1 << 24  # numbers of the features or the filters of sound
_LARGEST_SPECTRA = 1 << 27  # numbers of all frames of sound, an hour of Whisper's
_LOWEST_RATE = 100  # samples per second of which filter banks can be made
_FILTER_BANKS_PER_S = 40  # frames of 25 ms, each of which every filter covers
_LARGEST_ELEMENTS = 2**31  # of one row of a tensor


def home_of(variant: Variant) -> str:
    """Returns the name of the variant's folder in the bundle."""
    return top_folder(variant.encoder.file)


def files_for(manifest: Manifest, variant: Variant) -> list[str]:
    """Returns the files in the folder of one variant, and those outside of any variant's folder."""
    own = home_of(variant)
    others = {home_of(other) for other in manifest.variants.values()} - {own}
    return [name for name in manifest.files if top_folder(name) not in others]


def check_same_model(
    opened: Manifest, current: Manifest, source: str | None, *, origin: str
) -> None:
    """Checks that a bundle still holds the model that was opened, and the same source variant.

    Args:
        opened: the manifest as it was opened.
        current: the manifest now; other variants may have been added, replaced or removed.
        source: name of a variant of the opened manifest; None compares no variant.
        origin: name of the bundle in messages.

    Raises:
        BundleError: the bundle holds another model, or another source variant.
    """
    same = _without_variants(opened) == _without_variants(current)
    if source is not None:
        variant = opened.variants[source]
        same = same and current.variants.get(source) == variant
        same = same and _records_for(opened, variant) == _records_for(current, variant)
    if not same:
        raise BundleError(
            f"{origin} was replaced by another bundle meanwhile, so nothing was added to it; run "
            "the command again"
        )


def _records_for(manifest: Manifest, variant: Variant) -> dict[str, FileRecord]:
    return {name: manifest.files[name] for name in files_for(manifest, variant)}


def _without_variants(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(manifest, files={}, variants={})


def check_consistency(manifest: Manifest, origin: str) -> None:
    """Checks that the fields of a manifest fit each other.

    Args:
        manifest: the manifest.
        origin: name of the manifest's file in messages.

    Raises:
        BundleError: two fields contradict each other; the message names them.
    """
    for problem in _problems(manifest):
        raise BundleError(f"{origin} makes no sense: {problem}; export it again")


def _problems(manifest: Manifest) -> Iterator[str]:
    """Yields what is wrong, a sentence for each fault."""
    if not manifest.variants:
        yield "it has no variant"
    for name, dim in manifest.dims.items():
        if not dim.min <= dim.typical <= dim.max:
            yield f"dimension {name!r} ranges from {dim.min} over {dim.typical} to {dim.max}"
    described = manifest.preprocess
    for encoder_input in described if isinstance(described, tuple) else (described,):
        for problem in _input_problems(encoder_input):
            yield f"input {encoder_input.name!r} {problem}"
    for name, variant in manifest.variants.items():
        if not is_variant_name(name):
            yield f"no variant can have the name {name[:100]!r}"
        yield from (f"{problem} of variant {name}" for problem in _graph_problems(variant))


def _input_problems(encoder_input: EncoderInput) -> Iterator[str]:
    """Yields what is wrong with one input of the encoder, as the end of a sentence."""
    if isinstance(encoder_input, (FramesInput, TilesInput)):
        yield from _input_problems(encoder_input.picture)
    if isinstance(encoder_input, (ImageInput, PixelsInput)):
        yield from _normalization_problems(encoder_input)
    if isinstance(encoder_input, ImageInput) and encoder_input.min_width > encoder_input.max_width:
        yield f"is {encoder_input.min_width} to {encoder_input.max_width} pixels wide"
    if isinstance(encoder_input, AudioInput):
        yield from _sound_problems(encoder_input)
    if (pixels := _pixels(encoder_input)) > LARGEST_INPUT_PIXELS:
        yield f"has up to {pixels} pixels, over {LARGEST_INPUT_PIXELS}"


def _sound_problems(sound: AudioInput) -> Iterator[str]:
    """Yields what is wrong with the features of sound: no frame, or tables that fill the RAM."""
    features = sound.features
    if isinstance(features, LogMel):
        frames, fft = features.samples // features.hop, features.fft
        if not frames or fft // 2 >= features.samples:
            yield f"has windows of {fft} samples, {features.hop} apart, in {features.samples}"
        largest = max(frames * features.mels, fft * features.mels)
        if frames * fft > _LARGEST_SPECTRA:
            yield f"has {frames} windows of {fft} samples, over {_LARGEST_SPECTRA} numbers"
    elif isinstance(features, FilterBank):
        if sound.sampling_rate < _LOWEST_RATE:
            yield f"has {sound.sampling_rate} samples per second, {_LOWEST_RATE} are the least"
        largest = features.mels * sound.sampling_rate // _FILTER_BANKS_PER_S
    else:
        return
    if largest > _LARGEST_TABLE:
        yield f"has features with tables of {largest} numbers, over {_LARGEST_TABLE}"


def _normalization_problems(picture: ImageInput | PixelsInput) -> Iterator[str]:
    channels = _CHANNELS[picture.mode]
    may_be_empty = isinstance(picture, PixelsInput)
    for field, values in (("mean", picture.mean), ("std", picture.std)):
        if len(values) != channels and not (may_be_empty and not values):
            yield f"has {len(values)} values as {field} for {channels} channels"


def _pixels(encoder_input: EncoderInput) -> int:
    """Returns the largest number of pixels of an input, as far as its description says it."""
    if isinstance(encoder_input, ImageInput):
        return encoder_input.height * max(encoder_input.max_width, encoder_input.width or 0)
    if isinstance(encoder_input, PixelsInput):
        return max(map(_step_pixels, encoder_input.steps), default=0)
    if isinstance(encoder_input, FramesInput):
        return encoder_input.frames * max(1, _pixels(encoder_input.picture))
    if isinstance(encoder_input, TilesInput):
        return (encoder_input.rows * encoder_input.columns + 1) * encoder_input.side**2
    if isinstance(encoder_input, PatchesInput):
        patch = encoder_input.patch_height * encoder_input.patch_width
        return encoder_input.max_patches * patch
    return 0


def _step_pixels(step: PixelStep) -> int:
    """Returns the number of pixels of a rectangle or square that a step names; 0 without one."""
    height, width, edge, side = (
        getattr(step, field, 0) for field in ("height", "width", "edge", "side")
    )
    return max(height * width, edge * edge, side * side)


def _graph_problems(variant: Variant) -> Iterator[str]:
    """Yields what is wrong with the graphs of a variant, as the begin of a sentence."""
    for role in GraphRole:
        graph = getattr(variant, role.value)
        if graph is None:
            continue
        for tensor in (*graph.inputs, *graph.outputs):
            if not tensor.shape and (tensor in graph.inputs):
                yield f"input {tensor.name!r} of {role.value} has no batch axis"
            if prod(size for size in tensor.shape if isinstance(size, int)) > _LARGEST_ELEMENTS:
                yield f"tensor {tensor.name!r} of {role.value} has over {_LARGEST_ELEMENTS} numbers"
        if not (graph.inputs and graph.outputs):
            yield f"graph {role.value} has no inputs or no outputs"
        names = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
        for name in sorted(_required(role, variant.head) - names):
            yield f"graph {role.value} has no tensor {name!r}"


def _required(role: GraphRole, head: Head) -> set[str]:
    """Returns the tensors that every graph of a role has."""
    if role is GraphRole.ENCODER:
        return set()
    if role is GraphRole.REFINE:
        return {CANDIDATES}
    return {TOKENS if role is GraphRole.PREFILL else TOKEN, *_HEADS[head]}

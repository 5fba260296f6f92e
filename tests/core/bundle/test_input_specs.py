"""Specs of encoder inputs survive a round trip through a manifest; unknown fields are refused."""

from __future__ import annotations

import msgspec
import pytest

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.input_specs import (
    ArrayInput,
    AudioInput,
    FilterBank,
    LogMel,
    PatchesInput,
    PixelsInput,
    Preprocess,
    TextInput,
    Waveform,
)
from hybrid_deploy.bundle.manifest import (
    GenerationDefaults,
    Tokenizer,
    decode_manifest,
    encode_manifest,
)
from hybrid_deploy.bundle.pixel_steps import (
    AlignLongAxis,
    CenterCrop,
    CropMargin,
    Pad,
    Resize,
    ResizeShortestEdge,
    ResizeWithin,
    Thumbnail,
)
from hybrid_deploy.errors import BundleError

STEPS = (
    CropMargin(),
    AlignLongAxis(20, 10),
    ResizeShortestEdge(12, 30, "lanczos"),
    ResizeWithin(9, 9),
    Resize(8, 8, "box"),
    Thumbnail(7, 7, reducing_gap=2.0),
    Pad(9, 9),
    CenterCrop(5, 5),
)
SPECS: list[Preprocess] = [
    PixelsInput("x", STEPS, mode="L", scale=None, mean=(0.5,), std=(0.25,)),
    PatchesInput("x", "mask", 64, 16, 16, normalize=False),
    AudioInput("x", 16000, LogMel(80, 400, 160, 480000)),
    AudioInput("x", 16000, FilterBank(40, scale=False), mask="mask", max_seconds=30.0),
    AudioInput("x", 8000, Waveform(), padding=-1.0),
    TextInput("x", "tokenizer.json", 64, mask="mask", prefix=(1,), suffix=(2, 3)),
    ArrayInput("x", ("y", "z")),
    (PixelsInput("x", ()), TextInput("y", "tokenizer.json", 8)),
]


@pytest.mark.parametrize("preprocess", SPECS, ids=lambda p: type(p).__name__)
def test_round_trip(tiny_bundle: Bundle, preprocess: Preprocess) -> None:
    manifest = msgspec.structs.replace(tiny_bundle.manifest, preprocess=preprocess)
    assert decode_manifest(encode_manifest(manifest), "here") == manifest


def test_round_trip_of_generation_and_tokenizer(tiny_bundle: Bundle) -> None:
    generation = GenerationDefaults(
        start_tokens=(1, 4),
        end_tokens=(2, 3),
        pad_token=0,
        max_length=8,
        min_length=3,
        suppressed=(5,),
        begin_suppressed=(6, 7),
        forced=((1, 4), (2, 5)),
        forced_end=2,
        repetition_penalty=1.5,
        no_repeat_ngram=3,
        beams=4,
        length_penalty=0.6,
        early_stopping="never",
    )
    tokenizer = Tokenizer("tokenizer.json", skip=(0, 1), tidy=True)
    manifest = msgspec.structs.replace(
        tiny_bundle.manifest, generation=generation, vocabulary=tokenizer
    )
    assert decode_manifest(encode_manifest(manifest), "here") == manifest


def test_unknown_fields_are_refused(tiny_bundle: Bundle) -> None:
    data = encode_manifest(tiny_bundle.manifest)
    changed = data.replace(b'"start_tokens"', b'"start_token"')
    with pytest.raises(BundleError, match="was changed after it was written"):
        decode_manifest(changed, "here")
    with pytest.raises(msgspec.ValidationError, match="unknown field `speed`"):
        msgspec.json.decode(b'{"type": "array", "name": "x", "speed": 2}', type=ArrayInput)

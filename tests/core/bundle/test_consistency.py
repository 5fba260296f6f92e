"""A manifest with a right seal and wrong fields is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.bundle.manifest import MAX_MANIFEST_BYTES, decode_manifest
from hybrid_deploy.errors import BundleError
from tests.benchmarks.reliability.tiny_bundle import manifest_of, sealed

Change = Callable[[dict[str, Any]], object]


def changed(path: Path, change: Change) -> None:
    """Changes the manifest of a bundle and seals it again."""
    manifest = manifest_of(path)
    change(manifest)
    (path / "manifest.json").write_bytes(sealed(json.dumps(manifest).encode()))


def step_of(manifest: dict[str, Any]) -> Any:
    return manifest["variants"]["fp32"]["step"]


def sound(features: dict[str, Any], rate: int = 16_000) -> Change:
    """Returns a change to a model that takes sound."""
    spec = {"type": "audio", "name": "image", "sampling_rate": rate, "features": features}
    return lambda manifest: manifest.update(preprocess=spec)


def tiles(side: int) -> Change:
    """Returns a change to a model whose pictures are enlarged to whole tiles."""
    steps = [{"type": "to-tiles", "side": side}]
    return lambda manifest: manifest.update(
        preprocess={"type": "pixels", "name": "image", "steps": steps}
    )


def test_the_features_of_whisper_are_no_problem(own_path: Path) -> None:
    whisper = {"type": "log-mel", "mels": 128, "fft": 400, "hop": 160, "samples": 480_000}
    changed(own_path, sound(whisper))
    open_bundle(own_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["preprocess"].update(height=0), "height"),
        (lambda m: m["preprocess"].update(width_multiple=0), "width_multiple"),
        (lambda m: m["preprocess"].update(mode="CMYK"), "mode"),
        (lambda m: m["preprocess"].update(mean=[0.5] * 3), "3 values as mean for 1 channels"),
        (lambda m: m["preprocess"].update(std=[0.0]), "std"),
        (lambda m: m["preprocess"].update(min_width=99), "is 99 to 64 pixels wide"),
        (lambda m: m["preprocess"].update(height=65535, max_width=65535), "pixels, over"),
        (lambda m: m["preprocess"].update(height=65535, max_width=513), "pixels, over 33554432"),
        (
            sound({"type": "log-mel", "mels": 1, "fft": 400, "hop": 1, "samples": 10**6}),
            "windows",
        ),
        (sound({"type": "log-mel", "mels": 10**5, "fft": 400, "hop": 9, "samples": 999}), "tables"),
        (sound({"type": "log-mel", "mels": 80, "fft": 9, "hop": 99, "samples": 9}), "99 apart"),
        (sound({"type": "log-mel", "mels": 80, "fft": 800, "hop": 9, "samples": 99}), "9 apart"),
        (sound({"type": "filter-bank", "mels": 10**5}), "tables of 40000000 numbers, over"),
        (sound({"type": "filter-bank", "mels": 40}, rate=1), "has 1 samples per second"),
        (tiles(65535), "pixels, over 33554432"),
        (lambda m: m["dims"]["width"].update(max=4), "ranges from 8 over 24 to 4"),
        (lambda m: m.update(variants={}), "it has no variant"),
        (lambda m: m.update(capacity=0), "capacity"),
        (lambda m: m["generation"].update(beams=257), "beams"),
        (lambda m: m["generation"].update(end_tokens=[-1]), "end_tokens"),
        (lambda m: m["generation"].update(length_penalty=-1e30), "length_penalty"),
        (lambda m: m["generation"].update(repetition_penalty=1e-30), "repetition_penalty"),
        (lambda m: m["preprocess"].update(std=[1e-45]), "std"),
        (lambda m: m["preprocess"].update(mean=[1e30]), "mean"),
        (lambda m: m.update(prompt={"text": "x" * 20_001}), "prompt.text"),
        (lambda m: m["vocabulary"]["tokens"].append("x" * 100_001), "vocabulary.tokens"),
        (lambda m: m["variants"].update({"..": m["variants"]["fp32"]}), "'fp32'|'..'"),
        (lambda m: step_of(m)["inputs"].pop(0), "graph step has no tensor 'token'"),
        (lambda m: step_of(m)["outputs"].pop(0), "graph step has no tensor 'logits'"),
        (lambda m: step_of(m)["inputs"][4].update(shape=[2**20, 2**20]), "has over 2147483648"),
        (lambda m: step_of(m)["inputs"][0].update(shape=[]), "has no batch axis"),
        (lambda m: m["files"].update({"a/" * 600 + "b": m["files"]["fp32/step.onnx"]}), "length"),
        (lambda m: m["files"].update({"b" * 256: m["files"]["fp32/step.onnx"]}), "outside its"),
    ],
)
def test_wrong_fields_are_named(own_path: Path, change: Change, words: str) -> None:
    changed(own_path, change)
    with pytest.raises(BundleError, match=words) as caught:
        open_bundle(own_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", [b'"\xff"', b"[" * 200_000 + b"]" * 200_000])
def test_bytes_that_are_no_json_of_the_schema(body: bytes) -> None:
    manifest = b'{"schema_version": 2, "name": ' + body + b"}"
    with pytest.raises(BundleError, match=r"it (does not follow the schema|is not a bundle)"):
        decode_manifest(sealed(manifest), "it")


def test_a_huge_manifest_is_not_read(own_path: Path) -> None:
    with (own_path / "manifest.json").open("ab") as file:
        file.truncate(100 * MAX_MANIFEST_BYTES)  # a hole: it takes no disk
    with pytest.raises(BundleError, match="is larger than 16 MB"):
        open_bundle(own_path)

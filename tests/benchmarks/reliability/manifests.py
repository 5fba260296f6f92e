"""Manifests of another content with a right seal: refused in one line, quickly, in little RAM."""

from __future__ import annotations

import copy
import json
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.session.session import Session, load_session
from tests.benchmarks.reliability.row import Row
from tests.benchmarks.reliability.tiny_bundle import copy_of, manifest_of, sealed
from tests.benchmarks.reliability.trials import LIMIT_S, FaultError, PeakRam, row_of_trials

_PLANTED = -1
_HUGE_SHARE = 250
"""One of so many manifests is a huge one."""

_MAKING_S = 60.0
"""Longest time of a trial in seconds, with the making of the manifest."""

_SLACK_BYTES = 64 << 20
"""RAM of any run, besides that of the manifest."""

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 255, 256, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), 2**64,
    10**30, 0.0, -0.5, 1e-45, 1e-9, 1e9, -30.5, 1e30, -1e30, 1e308,
    1e-308, -1e300, "", " ", "x", "a" * 5000, "\x00", "\x1b[31m",
    "\u202e",
    "../x", "/etc/passwd", "fp32", "batch", "image", "logits", "token", "float", "bfloat16", "L",
    "RGB", "CMYK", "never", [], [[]], [0], [-1], [1.0], ["x"], [None], [2**40], [1] * 2000, {},
    {"x": 1}, {"min": 1, "typical": 1, "max": 1}, {"type": "array", "name": "image"},
    {"type": "text", "name": "image", "tokenizer": "golden/page.png", "max_length": 5},
    {"type": "waveform"},
    {
        "type": "audio", "name": "image", "sampling_rate": 16000,
        "features": {"type": "log-mel", "mels": 0, "fft": 0, "hop": 0, "samples": 10**12},
    },
    {
        "type": "pixels", "name": "image",
        "steps": [{"type": "resize", "height": 10**6, "width": 10**6}],
    },
    {
        "type": "frames", "name": "image", "frames": 10**9,
        "picture": {"type": "pixels", "name": "image", "steps": []},
    },
    {
        "type": "tiles", "side": 0, "rows": 10**6, "columns": 10**6,
        "picture": {"type": "pixels", "name": "image", "steps": []},
    },
    {
        "type": "patches", "name": "image", "mask": None, "max_patches": 10**12,
        "patch_height": 0, "patch_width": 0,
    },
    {"type": "tokenizer", "file": "golden/page.png"},
)  # fmt: skip
"""Values that are put in the place of others."""


def check(count: int, seed: int, *, bundle: Path | None = None) -> Row:
    """Writes `count` other manifests with a right seal, opens the bundle and runs what it accepts.

    Args:
        count: number of manifests.
        seed: seed of the first one.
        bundle: bundle whose manifest is changed, as a copy; None exports a tiny one.
    """
    return row_of_trials(
        "manifests of another content with a right seal",
        "a reader that trusts a manifest of 12 MB of nested lists",
        lambda original, scratch: ManifestTrial(original, copy_of(original, scratch)),
        range(seed, seed + count),
        (_PLANTED,),
        bundle=bundle,
        limit_s=_MAKING_S,
    )


@dataclass(frozen=True)
class ManifestTrial:
    """Changes the manifest of a bundle, seals it again, opens the bundle and runs its sample.

    Attributes:
        original: the bundle.
        copied: copy of the bundle, whose manifest is replaced.
    """

    original: Path
    copied: Path

    def __call__(self, seed: int) -> str:
        """Returns whether the bundle was accepted and run, or equals the original one.

        Raises:
            HybridDeployError: the bundle was refused.
            FaultError: opening takes too long, or more than twice the size of the manifest in RAM.
        """
        path = self.copied / "manifest.json"
        if seed == _PLANTED:
            path.write_bytes(sealed(_nested(3_000_000)))
            json.loads(path.read_bytes())
        content = changed_manifest(self.original, seed)
        path.write_bytes(content)
        limit_bytes = 2 * len(content) + _SLACK_BYTES
        del content
        ram, started_at = PeakRam(), time.monotonic()
        try:
            opened = open_bundle(self.copied)
        finally:
            if (grown := ram.growth_bytes()) > limit_bytes:
                raise FaultError(f"{grown / 1e6:.0f} MB of RAM for a manifest")
            if (seconds := time.monotonic() - started_at) > LIMIT_S:
                raise FaultError(f"{seconds:.1f} s for a manifest")
        variant = next(iter(opened.manifest.variants))
        _use(load_session(self.copied, variant=variant), self.original)
        return "accepted and run"


def _use(session: Session, original: Path) -> None:
    from hybrid_deploy.cli.commands.inspect import report

    msgspec.json.encode(session.bundle.manifest)
    report(session.bundle)
    page = original / "golden" / "page.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        session.run_files([page])
        session.run_files([page] * 2, options=GenerateOptions(beams=2))


def changed_manifest(bundle: Path, seed: int) -> bytes:
    """Returns the bytes of a changed manifest with a right seal."""
    rng = random.Random(seed)
    if rng.randrange(_HUGE_SHARE) == 0:
        return sealed(rng.choice(_HUGE)(copy.deepcopy(_manifest(bundle))))
    manifest = copy.deepcopy(_manifest(bundle))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _change(manifest, rng)
    body = json.dumps(manifest)
    if rng.randrange(20) == 0:
        body = body.replace('"tiny"', rng.choice(('"\\ud800"', '"\\udc80\\ud800"', "NaN", "1e999")))
    encoded = body.encode()
    if rng.randrange(40) == 0:
        encoded = encoded.replace(b"tiny", rng.choice((b"\xff\xfe", b"\xed\xa0\x80", b"\x00")))
    return sealed(encoded)


@lru_cache(maxsize=1)
def _manifest(bundle: Path) -> dict[str, Any]:
    return manifest_of(bundle)


def _change(manifest: dict[str, Any], rng: random.Random) -> None:
    """Changes one value, name or list at a random place of a manifest."""
    places = list(_places(manifest))
    holder, key = rng.choice(places)
    how = rng.randrange(10)
    if how < 6:
        holder[key] = copy.deepcopy(rng.choice(HOSTILE))
    elif how == 6:
        other_holder, other_key = rng.choice(places)
        holder[key] = copy.deepcopy(other_holder[other_key])
    elif how == 7:
        del holder[key]
    elif isinstance(holder, dict):
        name = rng.choice(("x", "", "../x", "fp32/x.onnx", "a" * 300, "\x00", "golden"))
        holder[name] = holder.pop(key) if how == 8 else copy.deepcopy(holder[key])
    else:
        holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Returns every place in nested lists and dicts as its holder and its key."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    else:
        return []
    return [(value, key) for key in keys] + [p for key in keys for p in _places(value[key])]


def _nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def _with_depth(manifest: dict[str, Any]) -> bytes:
    body = json.dumps(manifest).encode()
    return body.replace(b'"tiny"', _nested(200_000), 1)


def _nested_alone(manifest: dict[str, Any]) -> bytes:
    return b'{"a":' * 500_000 + b"1" + b"}" * 500_000


def _with_many_files(manifest: dict[str, Any]) -> bytes:
    record = next(iter(manifest["files"].values()))
    manifest["files"] |= {f"golden/{number}.png": record for number in range(500_000)}
    return json.dumps(manifest).encode()


def _with_a_long_name(manifest: dict[str, Any]) -> bytes:
    manifest["name"] = "n" * 100_000_000
    return json.dumps(manifest).encode()


def _with_a_long_path(manifest: dict[str, Any]) -> bytes:
    record = next(iter(manifest["files"].values()))
    manifest["files"]["golden/" + "a/" * 2_000_000 + "b"] = record
    return json.dumps(manifest).encode()


def _with_many_variants(manifest: dict[str, Any]) -> bytes:
    variant = manifest["variants"]["fp32"]
    manifest["variants"] |= {f"v{number}": variant for number in range(5_000)}
    return json.dumps(manifest).encode()


def _with_a_long_number(manifest: dict[str, Any]) -> bytes:
    body = json.dumps(manifest).encode()
    return body.replace(b'"capacity": 8', b'"capacity": ' + b"9" * 1_000_000)


_HUGE: tuple[Callable[[dict[str, Any]], bytes], ...] = (
    _with_depth, _nested_alone, _with_many_files, _with_a_long_name, _with_a_long_path,
    _with_many_variants, _with_a_long_number,
)  # fmt: skip

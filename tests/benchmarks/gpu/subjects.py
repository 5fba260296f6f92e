"""The models of the benchmark, in the precision that is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.contract import LOGITS, TOKEN, GraphRole, is_recurrent
from hybrid_deploy.export.exporter import run_export
from hybrid_deploy.export.reference.job import feature_map
from tests.models.readers import whisper_shape


@dataclass(frozen=True)
class Sizes:
    """What the speed of a decoder depends on."""

    layers: int
    heads: int
    head_dim: int
    feedforward: int
    vocabulary: int
    capacity: int
    memory: int


@dataclass(frozen=True)
class Subject:
    """A model that is timed.

    Attributes:
        name: in the table.
        bundle: opened, with the variant.
        variant: the precision.
        feedforward: hidden width of the decoder's blocks, which no graph shows.
    """

    name: str
    bundle: Bundle
    variant: str
    feedforward: int

    def inputs(self, batch: int) -> dict[str, NDArray[Any]]:
        """Returns noise for the encoder; every symbolic size but the batch is the typical one."""
        rng = np.random.default_rng(0)
        dims = {n: d.typical for n, d in self.bundle.manifest.dims.items()} | {"batch": batch}
        spec = self.bundle.graph(self.variant, GraphRole.ENCODER)
        shapes = {
            t.name: [dims[s] if isinstance(s, str) else s for s in t.shape] for t in spec.inputs
        }
        return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    def sizes(self) -> Sizes:
        """Reads the decoder's sizes off its step graph."""
        spec = self.bundle.graph(self.variant, GraphRole.STEP)
        dims = self.bundle.manifest.dims
        shapes = {t.name: t.shape for t in (*spec.inputs, *spec.outputs)}
        caches = [n for n in shapes if f"{n}_next" in shapes and not is_recurrent(n)]
        _, heads, capacity, head_dim = shapes[caches[0]]
        memory = shapes["cross_key_0"][2]
        return Sizes(
            layers=len(caches) // 2,
            heads=int(heads),
            head_dim=int(head_dim),
            feedforward=self.feedforward,
            vocabulary=int(shapes[LOGITS][-1]),
            capacity=int(capacity),
            memory=dims[memory].typical if isinstance(memory, str) else memory,
        )

    def step_bytes(self, batch: int) -> float | None:
        """Returns what a step must read: weights, caches and memory; None where it is not known."""
        spec = self.bundle.graph(self.variant, GraphRole.STEP)
        if spec.cost is None:
            return None
        token = next(t for t in spec.inputs if t.name == TOKEN)
        counted = self.bundle.manifest.dims[str(token.shape[0])].typical
        rows = spec.cost.cache_bytes + spec.cost.input_bytes
        return spec.cost.weight_bytes + rows * batch / counted


def _digits(folder: Path) -> None:
    run_export(feature_map(), folder)


def _whisper(folder: Path) -> None:
    whisper_shape.write(folder, folder.parent / "noise")


_MAKERS: dict[str, tuple[Callable[[Path], None], int]] = {
    "digits": (_digits, 192),
    "whisper-tiny": (_whisper, 1536),
}
NAMES = tuple(_MAKERS)


def make_subject(name: str, variant: str, work: Path) -> Subject:
    """Exports and converts a model, unless the folder has it."""
    make, feedforward = _MAKERS[name]
    path = work / f"{name}.bundle"
    if not path.exists():
        make(path)
    if variant not in open_bundle(path).manifest.variants:
        quantize_bundle(path, variant)
    return Subject(name, open_bundle(path), variant, feedforward)

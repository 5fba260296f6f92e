"""The models of the benchmark, with a variant in the timed precision."""

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
    """Sizes of a decoder, from which PyTorch's decoder is built.

    Attributes:
        layers: number of decoder layers.
        heads: number of attention heads.
        head_dim: width of a head.
        feedforward: hidden width of a feed-forward block.
        vocabulary: number of tokens in the vocabulary.
        capacity: largest number of tokens of a sequence.
        memory: number of memory positions (the encoder's output).
    """

    layers: int
    heads: int
    head_dim: int
    feedforward: int
    vocabulary: int
    capacity: int
    memory: int


@dataclass(frozen=True)
class Subject:
    """A timed model.

    Attributes:
        name: name of the model in the table.
        bundle: opened bundle that has the variant.
        variant: name of the timed variant.
        feedforward: hidden width of a feed-forward block, which the graphs do not state.
    """

    name: str
    bundle: Bundle
    variant: str
    feedforward: int

    def inputs(self, batch: int) -> dict[str, NDArray[Any]]:
        """Returns float32 noise for every encoder input; free axes have their typical size."""
        rng = np.random.default_rng(0)
        dims = {n: d.typical for n, d in self.bundle.manifest.dims.items()} | {"batch": batch}
        spec = self.bundle.graph(self.variant, GraphRole.ENCODER)
        shapes = {
            t.name: [dims[s] if isinstance(s, str) else s for s in t.shape] for t in spec.inputs
        }
        return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    def sizes(self) -> Sizes:
        """Returns the decoder's sizes, from the shapes of its step graph."""
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
        """Returns the bytes that a step reads: weights, caches and memory; None if unknown."""
        spec = self.bundle.graph(self.variant, GraphRole.STEP)
        if spec.cost is None:
            return None
        token = next(t for t in spec.inputs if t.name == TOKEN)
        counted_batch = self.bundle.manifest.dims[str(token.shape[0])].typical
        batch_bytes = spec.cost.cache_bytes + spec.cost.input_bytes
        return spec.cost.weight_bytes + batch_bytes * batch / counted_batch


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
    """Returns a model, exported and converted into a folder unless it is there.

    Args:
        name: name of the model, one of NAMES.
        variant: precision of the variant.
        work: folder of the bundles.
    """
    make, feedforward = _MAKERS[name]
    path = work / f"{name}.bundle"
    if not path.exists():
        make(path)
    if variant not in open_bundle(path).manifest.variants:
        quantize_bundle(path, variant)
    return Subject(name, open_bundle(path), variant, feedforward)

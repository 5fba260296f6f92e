"""ONNX Runtime with every graph run by its own name, and counted.

The backend of the runtime chooses: short prompts go through the step, and the beam step takes the
place of the step where both have the same tensors. What ships must run whatever is chosen there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from hybrid_deploy.runtime.backends.onnxruntime.decoding import OnnxRuntimeDecoding
from hybrid_deploy.runtime.backends.registry import BackendOptions


class NamedGraphs(OnnxRuntimeBackend):
    """A variant whose prefill is the prefill graph, and whose step is the step graph.

    After `expand_beams` the step is the beam step graph.

    Args:
        bundle: holds the graphs.
        variant: name of the variant.
        beams: whether only beams are decoded; else the beam step is not loaded.

    Attributes:
        runs: number of runs of each graph.
    """

    def __init__(self, bundle: Bundle, variant: str, *, beams: bool = False) -> None:
        self.runs: Counter[GraphRole] = Counter()
        chosen = bundle if beams else _without_beam_step(bundle, variant)
        super().__init__(chosen, variant, BackendOptions(large_pages=False))

    def start(self, inputs: Mapping[str, NDArray[Any]]) -> OnnxRuntimeDecoding:
        """Encodes a batch and returns its decoding, which sends every prompt through prefill."""
        decoding = super().start(inputs)
        decoding.shortest_prefill = 1
        return decoding

    def _open(self, role: GraphRole) -> Any:
        return _CountedSession(super()._open(role), role, self.runs)


class _CountedSession:
    """A session that counts its runs; everything else is the session's own."""

    def __init__(self, session: Any, role: GraphRole, runs: Counter[GraphRole]) -> None:
        self._session = session
        self._role = role
        self._runs = runs

    def run_with_iobinding(self, binding: Any) -> None:
        """Runs the graph on bound tensors."""
        self._session.run_with_iobinding(binding)
        self._runs[self._role] += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def _without_beam_step(bundle: Bundle, variant: str) -> Bundle:
    described = msgspec.structs.replace(bundle.variant(variant), beam_step=None)
    variants = bundle.manifest.variants | {variant: described}
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, variants=variants))

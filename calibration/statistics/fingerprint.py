"""What was run: a variant of a model, known by the hashes of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec
import onnxruntime as ort

from hybrid_deploy import __version__
from hybrid_deploy.bundle.bundle import Bundle


class Fingerprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was run.

    Attributes:
        model: name of the bundle's model.
        variant: name of the float variant.
        graphs: SHA-256 of its graph files, by role.
        weights: SHA-256 of its weight files, by name: retrained graphs may look the same.
        producer: the versions of hybrid-deploy and ONNX Runtime.
    """

    model: str
    variant: str
    graphs: dict[str, str]
    weights: dict[str, str]
    producer: str


class HasFingerprint(Protocol):
    """What was learned of a model says which one it is."""

    @property
    def model(self) -> str:
        """Name of the model."""
        ...

    @property
    def graphs(self) -> dict[str, str]:
        """SHA-256 of the graph files."""
        ...

    @property
    def weights(self) -> dict[str, str]:
        """SHA-256 of the weight files."""
        ...


def fingerprint_of(bundle: Bundle, variant: str) -> Fingerprint:
    """Names what observations of a variant are made with."""
    files, graphs = bundle.manifest.files, bundle.graphs(variant)
    homes = {Path(graph.file).parent for graph in graphs.values()}
    named = {graph.file for graph in graphs.values()}
    return Fingerprint(
        model=bundle.manifest.name,
        variant=variant,
        graphs={role.value: files[graph.file].sha256 for role, graph in graphs.items()},
        weights={
            name: record.sha256
            for name, record in files.items()
            if Path(name).parent in homes and name not in named
        },
        producer=f"hybrid-deploy {__version__}, onnxruntime {ort.__version__}",
    )


def mismatch_with(recorded: HasFingerprint, bundle: Bundle, variant: str) -> str | None:
    """Says what else something was made of; None if it was made of this variant."""
    here = fingerprint_of(bundle, variant)
    if recorded.model != here.model:
        return f"another model ({recorded.model})"
    if recorded.graphs != here.graphs:
        return f"another model (other graphs of {recorded.model})"
    if sorted(recorded.weights.values()) != sorted(here.weights.values()):
        return f"another model ({recorded.model} with other weights)"
    return None

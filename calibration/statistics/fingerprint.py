"""Fingerprints: which model, variant, files and versions something was calibrated with."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec
import onnxruntime as ort

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.version import __version__


class Fingerprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Identifies a variant of a model, and the software that ran it.

    Attributes:
        model: name of the bundle's model.
        variant: name of the float variant.
        graphs: SHA-256 of the variant's graph files, by role.
        weights: SHA-256 of the variant's weight files, by name; they differ after a new training,
            while the graphs may stay equal.
        producer: the versions of hybrid-deploy and ONNX Runtime.
    """

    model: str
    variant: str
    graphs: dict[str, str]
    weights: dict[str, str]
    producer: str


class HasFingerprint(Protocol):
    """A record of calibration that names the model it belongs to."""

    @property
    def model(self) -> str:
        """Name of the model."""
        ...

    @property
    def graphs(self) -> dict[str, str]:
        """SHA-256 of the graph files, by role."""
        ...

    @property
    def weights(self) -> dict[str, str]:
        """SHA-256 of the weight files, by name."""
        ...


def fingerprint_of(bundle: Bundle, variant: str) -> Fingerprint:
    """Returns the fingerprint of a variant, with the installed versions as the producer."""
    files, graphs = bundle.manifest.files, bundle.graphs(variant)
    folders = {Path(graph.file).parent for graph in graphs.values()}
    graph_files = {graph.file for graph in graphs.values()}
    return Fingerprint(
        model=bundle.manifest.name,
        variant=variant,
        graphs={role.value: files[graph.file].sha256 for role, graph in graphs.items()},
        weights={
            name: record.sha256
            for name, record in files.items()
            if Path(name).parent in folders and name not in graph_files
        },
        producer=f"hybrid-deploy {__version__}, onnxruntime {ort.__version__}",
    )


def mismatch_with(recorded: HasFingerprint, bundle: Bundle, variant: str) -> str | None:
    """Returns which other model a record belongs to; None if it belongs to this variant."""
    expected = fingerprint_of(bundle, variant)
    if recorded.model != expected.model:
        return f"another model ({recorded.model})"
    if recorded.graphs != expected.graphs:
        return f"another model (other graphs of {recorded.model})"
    if sorted(recorded.weights.values()) != sorted(expected.weights.values()):
        return f"another model ({recorded.model} with other weights)"
    return None

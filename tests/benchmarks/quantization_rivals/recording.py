"""Records the inputs of encoder and step during decoding, as calibration data for the rivals.

They are the inputs that the graphs get in use, so no better calibration data exists.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.observation.observed_model import Arrays, ObservedModel
from hybrid_deploy.calibration.samples.samples import Samples
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.onnx_graphs.files import load_graphs
from tests.benchmarks.quantization_rivals.calls import Call

ROLES = (GraphRole.ENCODER, GraphRole.STEP)


def record_calls(
    bundle: Bundle, variant: str, samples: Samples, steps: int
) -> dict[GraphRole, list[Call]]:
    """Decodes samples and returns the recorded calls of encoder and step.

    Args:
        bundle: bundle of the model.
        variant: name of the variant that decodes.
        samples: encoder inputs.
        steps: largest number of step calls. Each sample contributes an equal share, spread evenly
            over its positions.

    Returns:
        The calls by graph: every encoder call, and at most `steps` step calls.
    """
    recorded: dict[GraphRole, list[Call]] = {role: [] for role in ROLES}
    with tempfile.TemporaryDirectory(prefix="rivals-record-") as folder:
        model = _RecordingModel(bundle, load_graphs(bundle, variant), Path(folder))
        for sample in samples:
            calls = model.record(sample)
            recorded[GraphRole.ENCODER] += calls[GraphRole.ENCODER]
            recorded[GraphRole.STEP] += _spread(calls[GraphRole.STEP], steps // len(samples))
    return recorded


class _RecordingModel(ObservedModel[Any]):
    """A model that records the inputs of each graph that it runs."""

    def record(self, sample: Arrays) -> dict[GraphRole, list[Call]]:
        """Decodes a sample and returns the calls of each graph."""
        self._calls: dict[GraphRole, list[Call]] = {role: [] for role in GraphRole}
        self.decode(sample)
        return self._calls

    def run(self, role: GraphRole, arrays: Arrays) -> dict[str, NDArray[Any]]:
        self._calls[role].append(
            {spec.name: arrays[spec.name].copy() for spec in self._specs[role].inputs}
        )
        return super().run(role, arrays)


def _spread(calls: list[Call], count: int) -> list[Call]:
    if len(calls) <= count:
        return calls
    return [calls[i] for i in np.linspace(0, len(calls) - 1, max(count, 1)).round().astype(int)]

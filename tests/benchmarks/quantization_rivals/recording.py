"""What the decoding loop feeds the graphs: the best calibration data that anyone could be given."""

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
    """Decodes samples and gives the inputs of every encoder call and of up to `steps` steps.

    Where there are more steps, each sample gives as many, spread evenly over its positions.
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
    """The float graphs, which keep what they are fed."""

    def record(self, sample: Arrays) -> dict[GraphRole, list[Call]]:
        """Decodes a sample and gives the calls that it took."""
        self._calls: dict[GraphRole, list[Call]] = {role: [] for role in GraphRole}
        self.decode(sample)
        return self._calls

    def run(self, role: GraphRole, arrays: Arrays) -> dict[str, NDArray[Any]]:
        self._calls[role].append(
            {each.name: arrays[each.name].copy() for each in self._specs[role].inputs}
        )
        return super().run(role, arrays)


def _spread(calls: list[Call], count: int) -> list[Call]:
    if len(calls) <= count:
        return calls
    return [calls[i] for i in np.linspace(0, len(calls) - 1, max(count, 1)).round().astype(int)]

"""The largest magnitude of every tensor: which of them a short float could not hold."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.observation.observed_model import ObservedModel
from hybrid_deploy.calibration.samples.samples import Samples
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.progress import Progress, silent


class Magnitude:
    """The largest finite magnitude; masks hold infinities by design, which any float holds."""

    def __init__(self) -> None:
        self.largest = 0.0

    def observe(self, array: NDArray[np.float32], sample: int) -> None:
        """Adds what the tensor held once."""
        if array.size == 0:
            return
        largest = max(-float(array.min()), float(array.max()))
        if not np.isfinite(largest):
            largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
        self.largest = max(self.largest, largest)


def observe_magnitudes(
    bundle: Bundle,
    graphs: Mapping[GraphRole, ir.Model],
    samples: Samples,
    progress: Progress = silent,
) -> dict[GraphRole, dict[str, float]]:
    """Decodes the samples and gives the largest finite magnitude of every float32 tensor.

    Args:
        bundle: gives the generation defaults.
        graphs: float32; they are not changed.
        samples: what to decode.
        progress: called with the number of samples done, as stage `overflow`.

    Returns:
        Magnitudes by graph and tensor, of all that nodes compute; a graph that no sample needs
        (prefill, where a prompt is one token) is not among them.

    Raises:
        CalibrationError: the logits are NaN or infinite.
        InputError: a sample does not fit the model.
    """
    watched = {role: dict.fromkeys(_computed(model), Magnitude) for role, model in graphs.items()}
    with tempfile.TemporaryDirectory(prefix="hybrid-deploy-magnitudes-") as folder:
        model = ObservedModel(bundle, graphs, Path(folder), watched)
        for done, inputs in enumerate(samples, start=1):
            model.decode(inputs)
            progress("overflow", done, len(samples))
    return {
        GraphRole(role): {name: magnitude.largest for name, magnitude in seen.items()}
        for role, seen in model.statistics.items()
    }


def _computed(model: ir.Model) -> list[str]:
    """Names the float32 outputs of all nodes."""
    values = (value for node in model.graph for value in node.outputs)
    return [str(v.name) for v in values if v.name and v.dtype is ir.DataType.FLOAT]

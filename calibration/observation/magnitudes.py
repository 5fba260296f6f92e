"""Records the largest magnitude of every tensor, which shows the tensors that overflow float16."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.observation.observed_model import ObservedModel
from hybrid_deploy.calibration.samples.samples import Samples
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.progress import Progress, silent
from hybrid_deploy.scratch import scratch_folder


class Magnitude:
    """The largest finite magnitude of one tensor.

    Infinities do not count: attention masks hold them on purpose, and every float type has them.

    Attributes:
        largest: the largest finite magnitude so far; 0 before the first observation.
    """

    def __init__(self) -> None:
        self.largest = 0.0

    def observe(self, array: NDArray[np.float32], sample: int) -> None:
        """Adds one value of the tensor, an array of any shape; the sample does not matter."""
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
    """Decodes the samples and returns the largest finite magnitude of every float32 tensor.

    Args:
        bundle: has the generation defaults.
        graphs: float32 graphs; they are not changed.
        samples: the samples to decode.
        progress: called with the number of finished samples, as stage `overflow`.

    Returns:
        Magnitudes by graph and tensor, for all outputs of nodes. A graph that never runs is
        absent, such as prefill if the prompt is one token.

    Raises:
        CalibrationError: the logits are NaN or infinite.
        InputError: a sample does not fit the model.
    """
    watched = {role: dict.fromkeys(_computed(model), Magnitude) for role, model in graphs.items()}
    progress("overflow", 0, len(samples))
    with scratch_folder("magnitudes") as folder:
        model = ObservedModel(bundle, graphs, folder, watched)
        for done, inputs in enumerate(samples, start=1):
            model.decode(inputs)
            progress("overflow", done, len(samples))
    return {
        GraphRole(role): {name: magnitude.largest for name, magnitude in magnitudes.items()}
        for role, magnitudes in model.statistics.items()
    }


def _computed(model: ir.Model) -> list[str]:
    """Returns the names of the float32 outputs of all nodes."""
    values = (value for node in model.graph for value in node.outputs)
    return [str(v.name) for v in values if v.name and v.dtype is ir.DataType.FLOAT]

"""Three tiny graphs with their inputs and expected outputs.

The `.onnx` files beside this module contain the weights below. `write_tiny_graphs.py` in
`tests/runtime/doctor` wrote these files, and a test compares them with this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from hybrid_deploy.errors import BackendError

Arrays = Mapping[str, NDArray[Any]]

POSITION = 3
"""Row of the caches that the step graph writes."""
CAPACITY = 8
"""Rows of a cache of the step graph."""
_HEADS, _HEAD_DIM = 2, 16


def _numbers(*shape: int, step: int) -> NDArray[np.float32]:
    """Returns multiples of 1/4 between -0.75 and 0.75, which every float type holds exactly."""
    count = int(np.prod(shape))
    values: NDArray[np.float32] = ((np.arange(count) * step % 7 - 3) / 4).astype(np.float32)
    return values.reshape(shape)


KERNEL = _numbers(8, 1, 3, 3, step=5)
"""Weights of the convolution, (filters, channels, rows, columns) float32."""
PROJECTION = _numbers(8, 16, step=3)
"""Weights of the product behind the convolution, (filters, 16) float32."""
LEVELS = (np.arange(64 * 64) * 37 % 255 - 127).astype(np.int8).reshape(64, 64)
"""Weights of the quantized product, (64, 64) int8."""
SCALE = np.full(64, 1 / 128, np.float32)
"""Scale of each column of `LEVELS`, (64,) float32."""

_IMAGE = _numbers(1, 1, 16, 16, step=3)
_ROW = _numbers(1, 64, step=5)
_QUERY = _numbers(1, _HEADS, 1, _HEAD_DIM, step=2)
_KEY = _numbers(1, _HEADS, CAPACITY, _HEAD_DIM, step=3)
_VALUE = _numbers(1, _HEADS, CAPACITY, _HEAD_DIM, step=4)


@dataclass(frozen=True)
class TinyGraph:
    """A graph of one or a few operators.

    Attributes:
        name: name in reports and in requests.
        file: ONNX file of the graph.
        title: the operators that it exercises, for reports.
        inputs: array of each input, by name.
        expected: expected array of some outputs, by name.
        tolerance: largest absolute error of an output.
    """

    name: str
    file: Path
    title: str
    inputs: Arrays
    expected: Arrays
    tolerance: float

    def check(self, outputs: Arrays) -> None:
        """Compares outputs with the expected ones.

        Raises:
            BackendError: an output differs by more than the tolerance, or is not finite.
        """
        for name, expected in self.expected.items():
            difference = float(np.abs(outputs[name] - expected).max())
            if not difference <= self.tolerance:  # also where it is not a number
                raise BackendError(f"wrong numbers: {name} is off by {difference:.3g}")


def _float_result() -> NDArray[np.float32]:
    """Returns the output of the float graph."""
    windows = sliding_window_view(_IMAGE, (3, 3), axis=(2, 3))
    maps = np.einsum("bcyxij,fcij->bfyx", windows, KERNEL)
    pooled = np.maximum(maps, 0).mean(axis=(2, 3))
    return np.asarray(pooled @ PROJECTION, np.float32)


def _next_cache(cache: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns a cache after the step, with the new row at `POSITION`."""
    updated: NDArray[np.float32] = cache.copy()
    updated[:, :, POSITION] = _QUERY[:, :, 0]
    return updated


def _step_result() -> NDArray[np.float32]:
    """Returns the output of the step graph: attention over the written rows of the caches."""
    key, value = (_next_cache(cache)[:, :, : POSITION + 1] for cache in (_KEY, _VALUE))
    weights = np.exp(_QUERY @ key.swapaxes(2, 3) / np.sqrt(_HEAD_DIM))
    attention = weights / weights.sum(-1, keepdims=True) @ value
    return np.asarray(attention, np.float32)


def _file(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.onnx")


FLOAT = TinyGraph(
    "float",
    _file("float"),
    "convolution and product, opset 18",
    {"image": _IMAGE},
    {"result": _float_result()},
    tolerance=1e-2,  # TensorRT and CUDA may round products to TF32: 10 bits
)
STEP = TinyGraph(
    "step",
    _file("step"),
    "decoder step with caches, opset 24",
    {
        "new": _QUERY,
        "position": np.asarray([POSITION], np.int64),
        "self_key_0": _KEY,
        "self_value_0": _VALUE,
    },
    {
        "result": _step_result(),
        "self_key_0_next": _next_cache(_KEY),
        "self_value_0_next": _next_cache(_VALUE),
    },
    tolerance=1e-2,  # as above
)
INT8 = TinyGraph(
    "int8",
    _file("int8"),
    "product with int8 weights, opset 18",
    {"row": _ROW},
    {"result": _ROW @ (LEVELS * SCALE)},
    tolerance=0.1,  # ONNX Runtime rounds the activations to 8 bits too: 64 errors of 0.75/254
)
GRAPHS = {graph.name: graph for graph in (FLOAT, STEP, INT8)}
"""All three graphs, by name."""

"""Three tiny graphs, what goes into them and what must come out.

The `.onnx` files beside this module hold these numbers; `tests/runtime/write_doctor_graphs.py` made
them, and a test compares the two.
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
CAPACITY = 8
_HEADS, _HEAD_DIM = 2, 16


def _numbers(*shape: int, step: int) -> NDArray[np.float32]:
    """Returns multiples of 1/4 between -0.75 and 0.75, exact in every type."""
    count = int(np.prod(shape))
    values: NDArray[np.float32] = ((np.arange(count) * step % 7 - 3) / 4).astype(np.float32)
    return values.reshape(shape)


KERNEL = _numbers(8, 1, 3, 3, step=5)
"""(filters, channels, rows, columns) float32, of the convolution."""
PROJECTION = _numbers(8, 16, step=3)
"""(filters, 16) float32, of the product behind it."""
LEVELS = (np.arange(64 * 64) * 37 % 255 - 127).astype(np.int8).reshape(64, 64)
"""(64, 64) int8, the weights of the quantized product."""
SCALE = np.full(64, 1 / 128, np.float32)
"""(64,) float32, one for each column of `LEVELS`."""

_IMAGE = _numbers(1, 1, 16, 16, step=3)
_ROW = _numbers(1, 64, step=5)
_QUERY = _numbers(1, _HEADS, 1, _HEAD_DIM, step=2)
_KEY = _numbers(1, _HEADS, CAPACITY, _HEAD_DIM, step=3)
_VALUE = _numbers(1, _HEADS, CAPACITY, _HEAD_DIM, step=4)


@dataclass(frozen=True)
class TinyGraph:
    """A graph of one or a few operators.

    Attributes:
        name: short, for reports.
        file: where the graph is.
        title: what it exercises.
        inputs: an array for each input.
        expected: what some of its outputs must be.
        tolerance: how far from that they may be.
    """

    name: str
    file: Path
    title: str
    inputs: Arrays
    expected: Arrays
    tolerance: float

    def check(self, outputs: Arrays) -> None:
        """Compares outputs with what they must be.

        Raises:
            BackendError: one differs.
        """
        for name, expected in self.expected.items():
            difference = float(np.abs(outputs[name] - expected).max())
            if not difference <= self.tolerance:  # also where it is not a number
                raise BackendError(f"wrong numbers: {name} is off by {difference:.3g}")


def _convolved() -> NDArray[np.float32]:
    """Returns what the float graph makes of the image."""
    windows = sliding_window_view(_IMAGE, (3, 3), axis=(2, 3))
    maps = np.einsum("bcyxij,fcij->bfyx", windows, KERNEL)
    pooled = np.maximum(maps, 0).mean(axis=(2, 3))
    return np.asarray(pooled @ PROJECTION, np.float32)


def _written(cache: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns a cache after the step: the new row is at its position."""
    after: NDArray[np.float32] = cache.copy()
    after[:, :, POSITION] = _QUERY[:, :, 0]
    return after


def _attended() -> NDArray[np.float32]:
    """Returns the attention of the step over the rows that are written."""
    key, value = (_written(cache)[:, :, : POSITION + 1] for cache in (_KEY, _VALUE))
    weights = np.exp(_QUERY @ key.swapaxes(2, 3) / np.sqrt(_HEAD_DIM))
    attended = weights / weights.sum(-1, keepdims=True) @ value
    return np.asarray(attended, np.float32)


def _file(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.onnx")


FLOAT = TinyGraph(
    "float",
    _file("float"),
    "convolution and product, opset 18",
    {"image": _IMAGE},
    {"result": _convolved()},
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
        "result": _attended(),
        "self_key_0_next": _written(_KEY),
        "self_value_0_next": _written(_VALUE),
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
"""Every graph by its name."""

"""Computes the floor: the shortest possible time of encoder and step on this machine.

Run as `python -m tests.benchmarks.cpu.floor THREADS` to measure the machine's rates.

A step takes at least the time to read its weights, inputs and caches from RAM; an encoder takes at
least the time of its matrix products. Both use the best measured rate, not the average.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hybrid_deploy.bundle.manifest import GraphCost
from tests.benchmarks.cpu.worker import pin
from tests.benchmarks.cpu.workloads import FLOAT, Workload

_MB = 1 << 20
_SIZES = tuple(size * _MB for size in (1, 2, 4, 8, 16, 32, 64, 128, 256))
_READ_AT_LEAST = 16 * _MB  # long enough to time, too short for other processes to interrupt
_COLUMNS, _FLOAT_BYTES = 1024, 4
_SIDE = 1024
_TRIES, _SECONDS = 5, 0.2


@dataclass
class Rates:
    """Best measured rates of the machine.

    Attributes:
        read: bytes per second of reading a buffer, by the size of the buffer in bytes.
        multiply: operations per second of a float32 matrix product; a multiply-add counts as two.
        multiply_8_bits: operations per second of an 8-bit matrix product, counted likewise.
    """

    read: dict[int, float] = field(default_factory=dict)
    multiply: float = 0.0
    multiply_8_bits: float = 0.0

    def keep_best(self, other: Rates) -> None:
        """Replaces each rate by that of another measurement where it is higher."""
        for size, rate in other.read.items():
            self.read[size] = max(rate, self.read.get(size, 0.0))
        self.multiply = max(self.multiply, other.multiply)
        self.multiply_8_bits = max(self.multiply_8_bits, other.multiply_8_bits)

    def read_ms(self, count: float) -> float:
        """Returns the milliseconds to read `count` bytes, at the best rate of buffers as large."""
        large = [rate for size, rate in self.read.items() if size >= count]
        return count / max(large or [self.read[max(self.read)]]) * 1e3

    def encoder_ms(self, flops: int, kind: str) -> float:
        """Returns the milliseconds of an encoder's products, in float32 or in 8 bits by class."""
        return flops / (self.multiply if kind == FLOAT else self.multiply_8_bits) * 1e3

    def to_json(self) -> str:
        """Returns the rates as one line of JSON."""
        return json.dumps([list(self.read.items()), self.multiply, self.multiply_8_bits])

    @staticmethod
    def from_json(text: str) -> Rates:
        """Returns the rates of a line from `to_json`."""
        read, multiply, multiply_8_bits = json.loads(text)
        return Rates(dict(read), multiply, multiply_8_bits)


def step_bytes(cost: GraphCost, task: Workload) -> float:
    """Returns the mean bytes that a step reads: weights, inputs and the filled part of caches."""
    filled = len(task.prompt) + task.tokens / 2
    return cost.weight_bytes + cost.input_bytes + cost.cache_bytes * filled / task.length


def measure(threads: int) -> Rates:
    """Measures the rates in this process, which takes a few seconds."""
    import torch

    torch.set_num_threads(threads)
    reading = {size: _read_rate(size) for size in _SIZES}
    left, right = torch.ones(_SIDE, _SIDE), torch.ones(_SIDE, _SIDE)
    products = 2 * _SIDE**3
    return Rates(
        reading,
        products / _shortest(lambda: torch.mm(left, right)),
        products / _shortest(_product_of_8_bits(threads)),
    )


def _read_rate(size: int) -> float:
    """Returns bytes per second of a matrix-vector product; the vector stays in the CPU's cache."""
    import torch

    matrix = torch.ones(size // _COLUMNS // _FLOAT_BYTES, _COLUMNS)
    vector, out = torch.ones(_COLUMNS), torch.empty(len(matrix))
    times = max(1, _READ_AT_LEAST // size)

    def read() -> None:
        for _ in range(times):
            torch.mv(matrix, vector, out=out)

    return size * times / _shortest(read)


def _product_of_8_bits(threads: int) -> Callable[[], object]:
    """Returns a function that multiplies uint8 by int8, ONNX Runtime's fastest 8-bit product."""
    import numpy as np
    import onnx
    import onnxruntime as ort

    shape = [_SIDE, _SIDE]
    node = onnx.helper.make_node("MatMulInteger", ["left", "right"], ["out"])
    left = onnx.helper.make_tensor_value_info("left", onnx.TensorProto.UINT8, shape)
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.INT32, shape)
    right = onnx.numpy_helper.from_array(np.ones(shape, np.int8), "right")
    graph = onnx.helper.make_graph([node], "product", [left], [out], [right])
    opset = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    content = model.SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    rows = np.ones(shape, np.uint8)
    return lambda: session.run(None, {"left": rows})


def _shortest(work: Callable[[], object]) -> float:
    """Returns the seconds of the fastest of several calls, after a warm-up call."""
    work()
    seconds: list[float] = []
    while len(seconds) < _TRIES or sum(seconds) < _SECONDS:
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


@dataclass(frozen=True)
class Floor:
    """Shortest possible times of one variant.

    Attributes:
        encoder_ms: milliseconds of the encoder's products.
        next_ms: milliseconds to read the data of one step.
        step_mb: MB that one step reads.
    """

    encoder_ms: float
    next_ms: float
    step_mb: float


def floor_of(
    costs: Mapping[str, GraphCost | None], task: Workload, kind: str, rates: Rates
) -> Floor | None:
    """Returns the floor of a variant; None if the cost of its encoder or step is unknown.

    Args:
        costs: cost of each graph, by role; the keys `encoder` and `step` are used.
        task: the workload.
        kind: the class, which sets the precision of the encoder's products.
        rates: best rates of the machine.
    """
    encoder, step = costs.get("encoder"), costs.get("step")
    if encoder is None or step is None:
        return None
    count = step_bytes(step, task)
    return Floor(rates.encoder_ms(encoder.flops, kind), rates.read_ms(count), count / 1e6)


if __name__ == "__main__":
    pin(int(sys.argv[1]))
    print(measure(int(sys.argv[1])).to_json())

"""The least time that the work can take on this machine.

Run as `python -m tests.benchmarks.cpu.floor THREADS`.

A token cannot be made faster than what its step reads comes from memory, nor an encoder run faster
than the machine multiplies. Both rates are the best that was seen, not what was seen on average.
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
_READ_AT_LEAST = 16 * _MB  # so that a clock can tell; no more, or others get the core meanwhile
_COLUMNS, _FLOAT_BYTES = 1024, 4
_SIDE = 1024
_TRIES, _SECONDS = 5, 0.2


@dataclass
class Rates:
    """The best rates seen.

    Attributes:
        read: bytes per second, by the size of the buffer in bytes.
        multiply: operations per second of a matrix product, two per multiply-add, in float32.
        multiply_8_bits: the same in 8 bits.
    """

    read: dict[int, float] = field(default_factory=dict)
    multiply: float = 0.0
    multiply_8_bits: float = 0.0

    def take(self, other: Rates) -> None:
        """Keeps what is better in another measurement."""
        for size, rate in other.read.items():
            self.read[size] = max(rate, self.read.get(size, 0.0))
        self.multiply = max(self.multiply, other.multiply)
        self.multiply_8_bits = max(self.multiply_8_bits, other.multiply_8_bits)

    def read_ms(self, count: float) -> float:
        """Returns the time to read so many bytes once, at the best rate of such buffers."""
        large = [rate for size, rate in self.read.items() if size >= count]
        return count / max(large or [self.read[max(self.read)]]) * 1e3

    def encoder_ms(self, flops: int, kind: str) -> float:
        """Returns the time of an encoder's products, all of them in the class's own numbers."""
        return flops / (self.multiply if kind == FLOAT else self.multiply_8_bits) * 1e3

    def to_json(self) -> str:
        """Returns the rates as a line of text."""
        return json.dumps([list(self.read.items()), self.multiply, self.multiply_8_bits])

    @staticmethod
    def from_json(text: str) -> Rates:
        """Reads what `to_json` gave."""
        read, multiply, multiply_8_bits = json.loads(text)
        return Rates(dict(read), multiply, multiply_8_bits)


def step_bytes(cost: GraphCost, task: Workload) -> float:
    """Returns what a step reads on average: weights, inputs, and the caches as far as filled."""
    filled = len(task.prompt) + task.tokens / 2
    return cost.weight_bytes + cost.input_bytes + cost.cache_bytes * filled / task.length


def measure(threads: int) -> Rates:
    """Measures the rates now; takes a few seconds."""
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
    """Reads a matrix by multiplying it with a vector, which stays in the nearest cache."""
    import torch

    matrix = torch.ones(size // _COLUMNS // _FLOAT_BYTES, _COLUMNS)
    vector, out = torch.ones(_COLUMNS), torch.empty(len(matrix))
    times = max(1, _READ_AT_LEAST // size)

    def read() -> None:
        for _ in range(times):
            torch.mv(matrix, vector, out=out)

    return size * times / _shortest(read)


def _product_of_8_bits(threads: int) -> Callable[[], object]:
    """Returns a product of unsigned with signed bytes, which ONNX Runtime does fastest."""
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
    """Returns the seconds of the fastest of many tries, after one to warm up."""
    work()
    seconds: list[float] = []
    while len(seconds) < _TRIES or sum(seconds) < _SECONDS:
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


@dataclass(frozen=True)
class Floor:
    """The least times of one variant.

    Attributes:
        encoder_ms: of the encoder's products.
        next_ms: of reading what a step reads.
        step_mb: what that is.
    """

    encoder_ms: float
    next_ms: float
    step_mb: float


def floor_of(
    costs: Mapping[str, GraphCost | None], task: Workload, kind: str, rates: Rates
) -> Floor | None:
    """Returns the floor of a variant by what its `encoder` and `step` cost; None if not known."""
    encoder, step = costs.get("encoder"), costs.get("step")
    if encoder is None or step is None:
        return None
    count = step_bytes(step, task)
    return Floor(rates.encoder_ms(encoder.flops, kind), rates.read_ms(count), count / 1e6)


if __name__ == "__main__":
    pin(int(sys.argv[1]))
    print(measure(int(sys.argv[1])).to_json())

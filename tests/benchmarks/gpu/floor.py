"""Computes the floor of a step: the time to read weights and caches, and to launch kernels."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.benchmarks.gpu.rivals import torch_clock
from tests.benchmarks.gpu.subjects import Subject

_COPIED = 1 << 28  # bytes, larger than any cache
_KERNELS = 200
_ROUNDS = 10


@dataclass(frozen=True)
class Floor:
    """Limits of a device.

    Attributes:
        bytes_per_s: bytes per second of a large copy, read and written bytes together.
        kernel_ms: milliseconds of a tiny kernel in a recorded CUDA graph; None on a CPU.
    """

    bytes_per_s: float
    kernel_ms: float | None

    def step_ms(self, subject: Subject, batch: int, kernels: int | None) -> float | None:
        """Returns the shortest possible milliseconds of a step; None if its bytes are unknown.

        Args:
            subject: the model.
            batch: number of sequences.
            kernels: number of kernels of a step; None if it is unknown.
        """
        read = subject.step_bytes(batch)
        if read is None:
            return None
        launches = 0.0 if kernels is None or self.kernel_ms is None else kernels * self.kernel_ms
        return max(read / self.bytes_per_s * 1e3, launches)


def measure_floor(device: str, copied: int = _COPIED) -> Floor:
    """Measures the bandwidth of device buffers and, on a GPU, the time of a recorded kernel.

    Args:
        device: `cuda` or `cpu`.
        copied: bytes of the copied buffer.
    """
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    clock = torch_clock if device == "cuda" else _host_clock

    def copy() -> None:
        target.copy_(source)

    times = [clock(copy) for _ in range(_ROUNDS)]
    bytes_per_s = 2 * copied / (statistics.median(times) / 1e3)
    return Floor(bytes_per_s, _kernel_ms() if device == "cuda" else None)


def _host_clock(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def _kernel_ms() -> float:
    value = torch.zeros(1, device="cuda")
    value.add_(1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_KERNELS):
            value.add_(1)
    times = [torch_clock(graph.replay) for _ in range(_ROUNDS)]
    return statistics.median(times) / _KERNELS

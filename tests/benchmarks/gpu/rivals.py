"""The compared loops; each generates the same number of tokens or raises why it cannot run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.runtime.backends.gpu.device import CaptureError
from hybrid_deploy.runtime.backends.gpu.open_gpu import open_gpu
from hybrid_deploy.runtime.backends.protocol import (
    Backend,
    GeneratesOnDevice,
)
from hybrid_deploy.runtime.backends.registry import (
    BackendOptions,
    load_backend,
)
from tests.benchmarks.gpu.subjects import Subject
from tests.benchmarks.gpu.timing import SkippedError, Timing, time_loop
from tests.benchmarks.gpu.torch_decoder import TorchDecoder, greedy_loop


@dataclass(frozen=True)
class Setting:
    """Settings of one measurement.

    Attributes:
        subject: the model.
        batch: number of sequences.
        tokens: number of tokens of each sequence.
        rounds: number of timed rounds.
        device: `cuda` or `cpu`, for PyTorch.
    """

    subject: Subject
    batch: int
    tokens: int
    rounds: int
    device: str


def torch_eager(setting: Setting) -> Timing:
    """Times PyTorch with static caches, one operator after the other."""
    return _time_torch(setting, lambda step: step)


def torch_compiled(setting: Setting) -> Timing:
    """Times the same decoder through torch.compile, which records CUDA graphs of its own."""

    def prepare(decoder: Any) -> Any:
        compiled = torch.compile(decoder, mode="reduce-overhead")

        def step(token: torch.Tensor, position: torch.Tensor) -> Any:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return compiled(token, position)  # type: ignore[no-untyped-call]

        return step

    return _time_torch(setting, prepare)


def _time_torch(setting: Setting, prepare: Callable[[Any], Any]) -> Timing:
    half = torch.float16 if setting.device == "cuda" else torch.float32
    decoder = TorchDecoder(setting.subject.sizes(), setting.batch).eval()
    step = prepare(decoder.to(setting.device, half))
    generate = greedy_loop(step, setting.batch, setting.tokens, setting.device)
    clock = torch_clock if setting.device == "cuda" else None
    return time_loop(generate, setting.tokens, setting.rounds, clock, lambda: str(half)[6:])


def torch_clock(work: Callable[[], None]) -> float:
    """Returns the milliseconds of a call on the GPU, between two CUDA events."""
    before = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    after = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    before.record()
    work()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after))


def onnxruntime_cpu(setting: Setting) -> Timing:
    """Times this project on the CPU, where the host feeds every token back."""
    return _time_backend(setting, _load("onnxruntime", setting.subject), None)


def onnxruntime_cuda(setting: Setting) -> Timing:
    """Times this project with ONNX Runtime's CUDA provider.

    Raises:
        SkippedError: the provider or the GPU is missing.
    """
    try:
        from hybrid_deploy.runtime.backends.onnxruntime.cuda_backend import NAME, load_on

        device: Any = open_gpu(NAME)
        backend = load_on(
            device, setting.subject.bundle, setting.subject.variant, BackendOptions(1)
        )
    except HybridDeployError as error:
        raise SkippedError(str(error)) from error
    return _time_backend(setting, backend, device.elapsed_ms)


def tensorrt_graph(setting: Setting) -> Timing:
    """Times this project with TensorRT and one recorded CUDA graph per block of tokens."""
    return _time_tensorrt(setting, records_graphs=True)


def tensorrt_enqueue(setting: Setting) -> Timing:
    """Times this project with TensorRT and a launch per step."""
    return _time_tensorrt(setting, records_graphs=False)


def _time_tensorrt(setting: Setting, *, records_graphs: bool) -> Timing:
    try:
        from hybrid_deploy.runtime.backends.tensorrt.backend import NAME, load_on

        device: Any = open_gpu(NAME)
        if not records_graphs:
            device.capture = _refuse_capture
        backend = load_on(device, setting.subject.bundle, setting.subject.variant)
    except HybridDeployError as error:
        raise SkippedError(str(error)) from error
    return _time_backend(setting, backend, device.elapsed_ms)


def _refuse_capture(work: Callable[[], None]) -> None:
    raise CaptureError("asked to launch step by step")


def _load(name: str, subject: Subject) -> Backend:
    try:
        return load_backend(name, subject.bundle, subject.variant, BackendOptions(1))
    except HybridDeployError as error:
        raise SkippedError(str(error)) from error


def _time_backend(
    setting: Setting, backend: Backend, clock: Callable[[Callable[[], None]], float] | None
) -> Timing:
    inputs, notes = setting.subject.inputs(setting.batch), {"fed back by the host"}
    token, position = np.zeros((2, setting.batch), np.int64)
    decoding = backend.start(inputs)

    def by_host() -> None:
        fed = token
        for index in range(setting.tokens):
            fed = decoding.step(fed, np.full(setting.batch, index)).argmax(-1)

    def by_device() -> None:
        assert isinstance(decoding, GeneratesOnDevice)
        generated = 0
        for block in decoding.step_blocks(token, position):
            notes.clear()
            notes.add(block.run if block.reason is None else f"{block.run}: {block.reason}")
            generated += len(block.tokens)
            if generated >= setting.tokens:
                break

    generate = by_device if isinstance(decoding, GeneratesOnDevice) else by_host
    timing = time_loop(
        generate, setting.tokens, setting.rounds, clock, lambda: f"{backend.version}; {notes.pop()}"
    )
    return timing


RIVALS: dict[str, Callable[[Setting], Timing]] = {
    "PyTorch eager, static caches": torch_eager,
    "PyTorch torch.compile": torch_compiled,
    "ONNX Runtime CPU": onnxruntime_cpu,
    "ONNX Runtime CUDA": onnxruntime_cuda,
    "TensorRT, step by step": tensorrt_enqueue,
    "TensorRT, recorded blocks": tensorrt_graph,
}

"""The generation loop with engines of PyTorch: on the host, and with CUDA graphs on a GPU.

No test here needs TensorRT, so they also run on a GPU that TensorRT-RTX does not support.
"""

from __future__ import annotations

import importlib.util
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.gpu.device import CaptureError
from hybrid_deploy.runtime.generation.sequences import Limits
from hybrid_deploy.runtime.host.local_gpu import local_gpu
from tests.closeness import assert_close_in_float32, assert_scores_close_in_float32
from tests.fakes.engine import CacheForm, Decoder
from tests.fakes.host_decoding import (
    HostDecoding,
    decode_on_device,
    decode_step_by_step,
    greedy_sequences,
)
from tests.fakes.host_device import HostDevice
from tests.fakes.torch_engine import torch_backend

if TYPE_CHECKING:
    from hybrid_deploy.runtime.backends.gpu.cuda_device import CudaDevice

GPU = local_gpu() is not None and importlib.util.find_spec("cuda") is not None
GPU_MARKS = [
    pytest.mark.gpu,
    pytest.mark.skipif(not GPU, reason="there is no GPU, or cuda-core is not installed"),
]
DEVICE_TYPES = ["cpu", pytest.param("cuda", marks=GPU_MARKS)]
FORMS_WITH_CACHES: list[CacheForm] = ["in place", "in turn"]
LIMITS = Limits((), 0, 99, 20)
GENERATIONS = 10_000


def device_of(device_type: str) -> HostDevice | CudaDevice:
    if device_type == "cpu":
        return HostDevice()
    from hybrid_deploy.runtime.backends.gpu.cuda_device import CudaDevice

    return CudaDevice()


def image_of(batch: int, seed: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(batch, 5)).astype(np.float32)


@pytest.mark.parametrize("device_type", DEVICE_TYPES)
@pytest.mark.parametrize("form", FORMS_WITH_CACHES)
@pytest.mark.parametrize("prompts", [[[1]], [[1]] * 8, [[1], [2, 3, 4], [5, 6]]])
def test_tokens_are_those_of_the_host(
    device_type: str, form: CacheForm, prompts: list[list[int]]
) -> None:
    decoder, image = Decoder(form=form), image_of(len(prompts))
    decoding = torch_backend(device_of(device_type), decoder, device_type).start({"image": image})
    host = HostDecoding(decoder, image)
    actual = decode_on_device(decoding, prompts, LIMITS)
    expected = greedy_sequences(host, prompts, LIMITS)
    assert [row.tokens for row in actual] == [row.tokens for row in expected]
    for row, expected_row in zip(actual, expected, strict=True):
        # TF32 is off in PyTorch
        assert_scores_close_in_float32(row.scores, expected_row.scores, host.largest_logit)


@pytest.mark.parametrize("device_type", DEVICE_TYPES)
@pytest.mark.parametrize("form", FORMS_WITH_CACHES)
def test_steps_and_reordered_sequences(device_type: str, form: CacheForm) -> None:
    decoder, image = Decoder(form=form), np.repeat(image_of(1), 3, axis=0)
    actual = torch_backend(device_of(device_type), decoder, device_type).start({"image": image})
    expected = HostDecoding(decoder, image)
    for position, rows in enumerate([[0, 1, 2], [2, 0, 0], [1, 1, 2], [0, 2, 1]]):
        token, at = np.array([1, 2, 3]) + position, np.full(3, position)
        assert_close_in_float32(actual.step(token, at), expected.step(token, at))
        for decoding in (actual, expected):
            decoding.reorder(np.array(rows))


def needs_gpu(test: Callable[..., None]) -> Callable[..., None]:
    for mark in GPU_MARKS:
        test = mark(test)
    return test


@needs_gpu
def test_cuda_device_copies_fills_and_records() -> None:
    device = device_of("cuda")
    buffer, small_buffer = device.allocate(1000), device.allocate(800)
    host, back = device.allocate_host(1000), device.allocate_host(1000)
    assert buffer.address % 256 == small_buffer.address % 256 == 0
    device.zero(buffer)
    host.fill(np.arange(100))
    device.upload(buffer.part(0, 800), host)

    def move() -> None:
        device.copy(small_buffer, buffer.part(0, 800))
        device.zero(buffer)

    graph = device.capture(move)
    device.download(back, buffer)
    device.synchronize()
    ints = np.dtype(np.int64)
    assert back.view(ints, (125,)).tolist() == [*range(100), *[0] * 25]  # the recording ran nothing
    graph.launch()
    event = device.event()
    device.download(back, small_buffer)
    event.record()
    event.wait()
    assert back.view(ints, (100,)).tolist() == list(range(100))
    for allocated in (buffer, small_buffer, host, back):
        device.free(allocated)


@needs_gpu
def test_stream_is_usable_after_a_failed_recording() -> None:
    device = device_of("cuda")
    with pytest.raises(CaptureError):
        device.capture(device.synchronize)
    device.synchronize()


@needs_gpu
def test_too_large_allocation_is_a_backend_error() -> None:
    with pytest.raises(BackendError, match=r"^CUDA: "):
        device_of("cuda").allocate(1 << 50)


@needs_gpu
@pytest.mark.parametrize("form", FORMS_WITH_CACHES)
def test_recorded_blocks_equal_single_steps(form: CacheForm) -> None:
    decoder, image = Decoder(form=form), image_of(2)
    backend = torch_backend(device_of("cuda"), decoder, "cuda", steps=8)
    decoding = backend.start({"image": image})
    blocks = list(decoding.step_blocks(np.array([1, 1]), np.array([0, 0])))
    assert {(block.run, block.reason) for block in blocks} == {("graph", None)}
    plain = decode_step_by_step(backend.start({"image": image}), [[1]] * 2, LIMITS)
    tokens = np.concatenate([block.tokens for block in blocks])
    assert [tuple(row) for row in tokens.T] == [row.tokens for row in plain]


@needs_gpu
@pytest.mark.slow
def test_gpu_and_ram_use_do_not_grow() -> None:
    from cuda.bindings import driver

    backend = torch_backend(device_of("cuda"), Decoder(), "cuda", steps=8)

    def generate(count: int) -> tuple[int, int]:
        for number in range(count):
            image = image_of(1 + number % 2, seed=number)
            decode_on_device(backend.start({"image": image}), [[1]] * len(image), LIMITS)
        return driver.cuMemGetInfo()[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    free, resident_kb = generate(100)
    free_after, resident_kb_after = generate(GENERATIONS)
    assert free_after == free
    assert resident_kb_after - resident_kb < 2048  # noise: 0.2 bytes a generation

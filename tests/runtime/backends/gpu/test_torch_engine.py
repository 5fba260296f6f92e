"""The loop over engines of PyTorch: on the host here, and as recorded CUDA graphs on a GPU.

It needs no TensorRT: it is what can be tried on a GPU that TensorRT-RTX does not serve.
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
from tests.fakes.engine import Decoder, Form
from tests.fakes.host_decoding import HostDecoding, ahead, greedily, stepped
from tests.fakes.host_device import HostDevice
from tests.fakes.torch_engine import torch_backend

if TYPE_CHECKING:
    from hybrid_deploy.runtime.backends.gpu.cuda_device import CudaDevice

GPU = local_gpu() is not None and importlib.util.find_spec("cuda") is not None
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not GPU, reason="there is no GPU, or cuda-core is not installed"),
]
WHERE = ["cpu", pytest.param("cuda", marks=on_gpu)]
ALIASED: list[Form] = ["in place", "in turn"]
LIMITS = Limits((), 0, 99, 20)
GENERATIONS = 10_000


def device_of(where: str) -> HostDevice | CudaDevice:
    if where == "cpu":
        return HostDevice()
    from hybrid_deploy.runtime.backends.gpu.cuda_device import CudaDevice

    return CudaDevice()


def image_of(batch: int, seed: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(batch, 5)).astype(np.float32)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("form", ALIASED)
@pytest.mark.parametrize("prompts", [[[1]], [[1]] * 8, [[1], [2, 3, 4], [5, 6]]])
def test_tokens_are_those_of_the_host(where: str, form: Form, prompts: list[list[int]]) -> None:
    decoder, image = Decoder(form=form), image_of(len(prompts))
    decoding = torch_backend(device_of(where), decoder, where).start({"image": image})
    host = HostDecoding(decoder, image)
    got, want = ahead(decoding, prompts, LIMITS), greedily(host, prompts, LIMITS)
    assert [row.tokens for row in got] == [row.tokens for row in want]
    for row, other in zip(got, want, strict=True):
        # TF32 is off in PyTorch
        assert_scores_close_in_float32(row.scores, other.scores, host.largest_logit)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("form", ALIASED)
def test_steps_and_reordered_rows(where: str, form: Form) -> None:
    decoder, image = Decoder(form=form), np.repeat(image_of(1), 3, axis=0)
    got = torch_backend(device_of(where), decoder, where).start({"image": image})
    want = HostDecoding(decoder, image)
    for position, rows in enumerate([[0, 1, 2], [2, 0, 0], [1, 1, 2], [0, 2, 1]]):
        token, at = np.array([1, 2, 3]) + position, np.full(3, position)
        assert_close_in_float32(got.step(token, at), want.step(token, at))
        for decoding in (got, want):
            decoding.reorder(np.array(rows))


def marked(test: Callable[..., None]) -> Callable[..., None]:
    for mark in on_gpu:
        test = mark(test)
    return test


@marked
def test_cuda_copies_fills_and_records() -> None:
    device = device_of("cuda")
    one, other = device.allocate(1000), device.allocate(800)
    host, back = device.allocate_host(1000), device.allocate_host(1000)
    assert one.address % 256 == other.address % 256 == 0
    device.zero(one)
    host.fill(np.arange(100))
    device.upload(one.part(0, 800), host)

    def move() -> None:
        device.copy(other, one.part(0, 800))
        device.zero(one)

    graph = device.capture(move)
    device.download(back, one)
    device.synchronize()
    ints = np.dtype(np.int64)
    assert back.view(ints, (125,)).tolist() == [*range(100), *[0] * 25]  # nothing is done yet
    graph.launch()
    event = device.event()
    device.download(back, other)
    event.record()
    event.wait()
    assert back.view(ints, (100,)).tolist() == list(range(100))
    for buffer in (one, other, host, back):
        device.free(buffer)


@marked
def test_what_cannot_be_recorded_leaves_the_stream_usable() -> None:
    device = device_of("cuda")
    with pytest.raises(CaptureError):
        device.capture(device.synchronize)
    device.synchronize()


@marked
def test_memory_that_there_is_not_is_one_error() -> None:
    with pytest.raises(BackendError, match=r"^CUDA: "):
        device_of("cuda").allocate(1 << 50)


@marked
@pytest.mark.parametrize("form", ALIASED)
def test_recorded_blocks_equal_steps_of_the_host(form: Form) -> None:
    decoder, image = Decoder(form=form), image_of(2)
    backend = torch_backend(device_of("cuda"), decoder, "cuda", steps=8)
    decoding = backend.start({"image": image})
    blocks = list(decoding.step_blocks(np.array([1, 1]), np.array([0, 0])))
    assert {(block.run, block.reason) for block in blocks} == {("graph", None)}
    plain = stepped(backend.start({"image": image}), [[1]] * 2, LIMITS)
    tokens = np.concatenate([block.tokens for block in blocks])
    assert [tuple(row) for row in tokens.T] == [row.tokens for row in plain]


@marked
@pytest.mark.slow
def test_memory_stays_flat() -> None:
    from cuda.bindings import driver

    backend = torch_backend(device_of("cuda"), Decoder(), "cuda", steps=8)

    def generate(count: int) -> tuple[int, int]:
        for number in range(count):
            image = image_of(1 + number % 2, seed=number)
            ahead(backend.start({"image": image}), [[1]] * len(image), LIMITS)
        return driver.cuMemGetInfo()[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    free, resident = generate(100)
    free_after, resident_after = generate(GENERATIONS)
    assert free_after == free
    assert resident_after - resident < 2048  # KB: noise of the interpreter, 0.2 bytes a generation

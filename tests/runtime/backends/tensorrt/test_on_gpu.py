"""TensorRT engines on a real GPU, against ONNX Runtime on the CPU.

Skipped without a GPU, TensorRT or cuda-core.
"""

from __future__ import annotations

import importlib.util
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.runtime.backends.gpu.backend import DeviceBackend
from hybrid_deploy.runtime.backends.gpu.device import CapturedGraph, CaptureError
from hybrid_deploy.runtime.backends.registry import BackendOptions, load_backend
from hybrid_deploy.runtime.engines.build import build_engines
from hybrid_deploy.runtime.generation.sequences import limits_of
from hybrid_deploy.runtime.host.local_gpu import local_gpu
from hybrid_deploy.target import parse_target
from tests.closeness import (
    assert_close,
    assert_close_in_float32,
    assert_scores_close_in_float32,
    float32_error,
    largest,
)
from tests.fakes.host_decoding import decode_on_device, decode_step_by_step, greedy_sequences

TENSORRT = any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx"))
CUDA = importlib.util.find_spec("cuda") is not None
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.trt,
    pytest.mark.slow,
    pytest.mark.skipif(local_gpu() is None, reason="there is no GPU"),
    pytest.mark.skipif(not TENSORRT, reason="neither tensorrt nor tensorrt-rtx is installed"),
    pytest.mark.skipif(not CUDA, reason="cuda-core is not installed"),
]
GENERATIONS = 10_000


def images(batch: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {"image": rng.standard_normal((batch, 1, 8, 24)).astype(np.float32)}


def built_backend(bundle: Bundle, variant: str = "fp32") -> DeviceBackend:
    build_engines(bundle, variant, parse_target("local"))
    backend = load_backend("tensorrt", bundle, variant, BackendOptions())
    assert isinstance(backend, DeviceBackend)
    return backend


@pytest.mark.parametrize("prompts", [[[1]], [[1]] * 3, [[1], [1, 4, 5], [1, 6]]])
def test_fp32_tokens_are_those_of_onnxruntime(
    tiny_bundle: Bundle, tiny_logit: float, prompts: list[list[int]]
) -> None:
    limits, inputs = limits_of(tiny_bundle.manifest), images(len(prompts))
    cpu = load_backend("onnxruntime", tiny_bundle, "fp32", BackendOptions())
    expected = greedy_sequences(cpu.start(inputs), prompts, limits)
    backend = built_backend(tiny_bundle)
    by_steps = decode_step_by_step(backend.start(inputs), prompts, limits)
    blocks = decode_on_device(backend.start(inputs), prompts, limits)
    for actual in (by_steps, blocks):
        assert [row.tokens for row in actual] == [row.tokens for row in expected]
        for row, expected_row in zip(actual, expected, strict=True):
            # TF32 is off
            assert_scores_close_in_float32(row.scores, expected_row.scores, tiny_logit)


def test_recorded_blocks_equal_enqueued_ones(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybrid_deploy.runtime.backends.gpu.cuda_device import CudaDevice

    token, position = np.array([1, 1, 1]), np.zeros(3, np.int64)
    recorded = list(built_backend(tiny_bundle).start(images(3)).step_blocks(token, position))
    assert {(block.run, block.reason) for block in recorded} == {("graph", None)}

    def refuse(self: CudaDevice, work: Callable[[], None]) -> CapturedGraph:
        raise CaptureError("not now")

    monkeypatch.setattr(CudaDevice, "capture", refuse)
    launched = list(built_backend(tiny_bundle).start(images(3)).step_blocks(token, position))
    assert {(block.run, block.reason) for block in launched} == {("enqueue", "not now")}
    for actual, expected in zip(recorded, launched, strict=True):
        np.testing.assert_array_equal(actual.tokens, expected.tokens)
        np.testing.assert_array_equal(actual.scores, expected.scores)


@pytest.mark.parametrize(("variant", "share"), [("fp16", 0.02), ("int8", 0.1)])
def test_logits_of_low_precision_are_close_to_onnxruntime(
    own_path: Path, page: Path, variant: str, share: float
) -> None:
    """The tolerance is a share of the largest logit: fp16 has 11 bits, int8 rounds differently."""
    samples = None if variant == "fp16" else page.parent
    quantize_bundle(own_path, variant, samples=samples)
    bundle = open_bundle(own_path)
    decodings = [
        load_backend("onnxruntime", bundle, variant, BackendOptions()).start(images(2)),
        built_backend(bundle, variant).start(images(2)),
    ]
    for position, token in enumerate([1, 4, 7, 3, 5]):
        at = np.full(2, position)
        expected, actual = (d.step(np.full(2, token), at).copy() for d in decodings)
        assert_close(actual, expected, share=share)


def test_beams_are_reordered_as_on_the_host(tiny_bundle: Bundle) -> None:
    inputs = {"image": np.repeat(images(1)["image"], 3, axis=0)}
    decoding = built_backend(tiny_bundle).start(inputs)
    decoding.step(np.array([1, 4, 5]), np.zeros(3, np.int64))
    decoding.reorder(np.array([2, 2, 0]))
    actual = decoding.step(np.array([6, 6, 6]), np.ones(3, np.int64)).copy()
    assert_close_in_float32(actual[0], actual[1])  # both follow token 5
    assert np.abs(actual[0] - actual[2]).max() > 10 * float32_error(largest(actual))


def test_gpu_and_ram_use_do_not_grow_and_nothing_is_allocated_per_token(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cuda.bindings import driver

    from hybrid_deploy.runtime.backends.gpu.cuda_device import CudaDevice

    backend, limits = built_backend(tiny_bundle), limits_of(tiny_bundle.manifest)

    def generate(count: int) -> tuple[int, int]:
        for number in range(count):
            decode_on_device(
                backend.start(images(1 + number % 2, number)), [[1]] * (1 + number % 2), limits
            )
        return driver.cuMemGetInfo()[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    free, resident_kb = generate(100)
    for name in ("allocate", "allocate_host", "event", "capture"):
        monkeypatch.delattr(CudaDevice, name)
    free_after, resident_kb_after = generate(GENERATIONS)
    assert free_after == free
    assert resident_kb_after - resident_kb < 2048  # noise of the interpreter

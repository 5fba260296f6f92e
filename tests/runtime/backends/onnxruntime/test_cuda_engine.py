"""The CUDA backend's engines and bindings, run by the CPU provider on addresses of the host."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.errors import BackendError, InputError, MissingDependencyError, UsageError
from hybrid_deploy.export.exporter import export_model
from hybrid_deploy.runtime.backends.gpu import open_gpu
from hybrid_deploy.runtime.backends.gpu.backend import DeviceBackend
from hybrid_deploy.runtime.backends.onnxruntime import cuda_backend
from hybrid_deploy.runtime.backends.onnxruntime.cuda_backend import load_on
from hybrid_deploy.runtime.backends.onnxruntime.cuda_engine import CHOOSE
from hybrid_deploy.runtime.backends.registry import BackendOptions, load_backend
from hybrid_deploy.runtime.generation.sequences import limits_of
from hybrid_deploy.runtime.host.local_gpu import LocalGpu, local_gpu
from tests.closeness import assert_close_in_float32, assert_scores_close_in_float32
from tests.export.lowering.test_custom_step import Recurrent
from tests.fakes.host_decoding import (
    Prompts,
    decode_on_device,
    decode_step_by_step,
    greedy_sequences,
)
from tests.fakes.host_device import HostDevice
from tests.fakes.two_stage_bundle import with_refine
from tests.runtime.backends.onnxruntime.write_choose_graph import chooser_model

ONE_THREAD = BackendOptions(1)
PROVIDERS = ort.get_available_providers()
CUDA = (
    local_gpu() is not None
    and "CUDAExecutionProvider" in PROVIDERS
    and importlib.util.find_spec("cuda") is not None
)


def on_host(bundle: Bundle, steps: int = 3) -> DeviceBackend:
    return load_on(HostDevice(), bundle, "fp32", ONE_THREAD, device_type="cpu", steps=steps)


def images(batch: int, width: int = 24) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(batch)
    return {"image": rng.standard_normal((batch, 1, 8, width)).astype(np.float32)}


def test_chooser_file_is_what_the_script_writes() -> None:
    assert onnx.load(CHOOSE) == chooser_model()


@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize("prompts", [[[1]], [[1]] * 4, [[1], [1, 4, 5], [1, 6]]])
def test_tokens_are_those_of_the_cpu_backend(
    tiny_bundle: Bundle, tiny_logit: float, prompts: Prompts, steps: int
) -> None:
    limits, inputs = limits_of(tiny_bundle.manifest), images(len(prompts))
    cpu = load_backend("onnxruntime", tiny_bundle, "fp32", ONE_THREAD)
    expected = greedy_sequences(cpu.start(inputs), prompts, limits)
    backend = on_host(tiny_bundle, steps)
    by_steps = decode_step_by_step(backend.start(inputs), prompts, limits)
    blocks = decode_on_device(backend.start(inputs), prompts, limits)
    for actual in (by_steps, blocks):
        assert [(row.tokens, row.finish) for row in actual] == [
            (row.tokens, row.finish) for row in expected
        ]
        for row, expected_row in zip(actual, expected, strict=True):
            assert_scores_close_in_float32(row.scores, expected_row.scores, tiny_logit)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="there is no GPU, onnxruntime-gpu or cuda-core")
@pytest.mark.parametrize("batch", [1, 3])
def test_tokens_of_the_cuda_provider_are_those_of_the_cpu(tiny_bundle: Bundle, batch: int) -> None:
    limits, inputs, prompts = limits_of(tiny_bundle.manifest), images(batch), [[1]] * batch
    cpu = load_backend("onnxruntime", tiny_bundle, "fp32", ONE_THREAD)
    expected = greedy_sequences(cpu.start(inputs), prompts, limits)
    backend = load_backend("onnxruntime-cuda", tiny_bundle, "fp32", ONE_THREAD)
    assert isinstance(backend, DeviceBackend)
    for _ in range(3):
        actual = decode_on_device(backend.start(inputs), prompts, limits)
        assert [row.tokens for row in actual] == [row.tokens for row in expected]


def test_batches_of_different_widths(tiny_bundle: Bundle) -> None:
    limits, backend = limits_of(tiny_bundle.manifest), on_host(tiny_bundle)
    cpu = load_backend("onnxruntime", tiny_bundle, "fp32", ONE_THREAD)
    for width in (8, 24, 64, 12, 8, 40, 24):
        inputs = images(2, width)
        actual = decode_on_device(backend.start(inputs), [[1]] * 2, limits)
        expected = greedy_sequences(cpu.start(inputs), [[1]] * 2, limits)
        assert [row.tokens for row in actual] == [row.tokens for row in expected]


def test_reordered_sequences_continue_from_their_source(tiny_bundle: Bundle) -> None:
    inputs = {"image": np.repeat(images(1)["image"], 3, axis=0)}
    decoding = on_host(tiny_bundle).start(inputs)
    first, at = np.array([3, 4, 5]), np.zeros(3, np.int64)
    decoding.step(first, at)
    decoding.reorder(np.array([2, 0, 2]))
    actual = decoding.step(np.full(3, 6), at + 1).copy()
    expected = on_host(tiny_bundle).start(inputs)
    expected.step(first[[2, 0, 2]], at)
    assert_close_in_float32(actual, expected.step(np.full(3, 6), at + 1))


def test_backend_is_usable_after_a_bad_input(tiny_bundle: Bundle) -> None:
    backend = on_host(tiny_bundle)
    with pytest.raises(InputError, match="got float64"):
        backend.start({"image": np.zeros((1, 1, 8, 8))})
    backend.start(images(1)).step(np.array([1]), np.array([0]))


def test_backend_is_usable_after_a_bad_token(tiny_bundle: Bundle) -> None:
    backend = on_host(tiny_bundle)
    with pytest.raises(BackendError, match="host failed in the step graph: onnxruntime: "):
        backend.start(images(1)).step(np.array([999]), np.array([0]))
    backend.start(images(1)).step(np.array([1]), np.array([0]))


@pytest.mark.skipif(local_gpu() is not None, reason="this machine has a GPU")
def test_error_without_a_gpu(tiny_bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="backend onnxruntime-cuda needs an NVIDIA GPU"):
        load_backend("onnxruntime-cuda", tiny_bundle, "fp32", BackendOptions())


def test_error_without_the_cuda_provider_names_the_extra(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_backend, "open_gpu", lambda name: HostDevice())
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependencyError) as caught:
        load_backend("onnxruntime-cuda", tiny_bundle, "fp32", BackendOptions())
    assert str(caught.value) == (
        "onnxruntime-gpu is not installed; install it with: pip install 'hybrid-deploy[cuda]'"
    )


def test_error_without_cuda_core_names_the_extra(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_gpu, "local_gpu", lambda: LocalGpu("RTX 3090", "8.6"))
    monkeypatch.delitem(
        sys.modules, "hybrid_deploy.runtime.backends.gpu.cuda_device", raising=False
    )
    for name in ("cuda", "cuda.core"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"hybrid-deploy\[gpu\]"):
        load_backend("onnxruntime-cuda", tiny_bundle, "fp32", BackendOptions())


@pytest.mark.skipif("CUDAExecutionProvider" in PROVIDERS, reason="this ONNX Runtime has CUDA")
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
def test_cuda_provider_that_does_not_load_is_an_error(tiny_bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="onnxruntime did not load its CUDA provider"):
        load_on(HostDevice(), tiny_bundle, "fp32", ONE_THREAD)


def test_recurrent_state_without_a_prefill_graph(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "recurrent.bundle"
    export_model(Recurrent().eval(), torch.randn(2, 6), path, max_length=12, start_tokens=1)
    bundle, prompts = open_bundle(path), [[1, 5, 9], [2], [7, 3]]
    inputs = {"features": np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)}
    limits = limits_of(bundle.manifest)
    cpu = load_backend("onnxruntime", bundle, "fp32", ONE_THREAD)
    expected = greedy_sequences(cpu.start(inputs), prompts, limits)
    for steps in (2, 3):
        backend = on_host(bundle, steps)
        for actual in (
            decode_on_device(backend.start(inputs), prompts, limits),
            decode_step_by_step(backend.start(inputs), prompts, limits),
        ):
            assert [row.tokens for row in actual] == [row.tokens for row in expected]


def test_approximate_logits_are_refused(tiny_bundle: Bundle) -> None:
    bundle = with_refine(tiny_bundle)
    with pytest.raises(UsageError) as caught:
        on_host(bundle)
    assert str(caught.value) == (
        f"variant fp32 of {bundle.folder} computes approximate logits and refines them, which only "
        "a CPU backend does: use --backend onnxruntime, or another variant with onnxruntime-cuda"
    )

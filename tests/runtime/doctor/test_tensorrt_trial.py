"""Runs plans with fakes of libcuda and TensorRT, because tests have no GPU."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.doctor.tensorrt_trial import LoadedPlan
from hybrid_deploy.runtime.doctor.tiny_graphs import FLOAT, STEP, TinyGraph
from hybrid_deploy.runtime.host.cuda_driver import CudaDriver
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import TensorRT
from hybrid_deploy.target import Flavour


class FakeLibrary:
    """A libcuda whose buffers lie in the RAM of this process."""

    def __init__(self, statuses: dict[str, int] | None = None) -> None:
        self.statuses = statuses or {}
        self.calls: list[str] = []
        self.buffers: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.statuses:
                return self.statuses[name]
            return getattr(type(self), f"do_{name}", lambda *_: 0)(self, *arguments) or 0

        return call

    def do_cuDriverGetVersion(self, value: Any) -> None:  # noqa: N802
        value._obj.value = 12060

    def do_cuDeviceTotalMem_v2(self, value: Any, device: Any) -> None:  # noqa: N802
        value._obj.value = 32 * 10**9

    def do_cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> None:  # noqa: N802
        value._obj.value = {18: 1}[attribute]

    def do_cuStreamCreate(self, stream: Any, flags: int) -> None:  # noqa: N802
        stream._obj.value = 77

    def do_cuMemAlloc_v2(self, address: Any, size: Any) -> None:  # noqa: N802
        self.buffers.append(ctypes.create_string_buffer(size.value))
        address._obj.value = ctypes.addressof(self.buffers[-1])

    def do_cuMemcpyHtoD_v2(self, address: Any, source: Any, size: Any) -> None:  # noqa: N802
        ctypes.memmove(address.value, source.value, size.value)

    def do_cuMemcpyDtoH_v2(self, target: Any, address: Any, size: Any) -> None:  # noqa: N802
        ctypes.memmove(target.value, address.value, size.value)

    def do_cuGetErrorName(self, status: int, text: Any) -> None:  # noqa: N802
        text._obj.value = {100: b"CUDA_ERROR_NO_DEVICE"}.get(status)


class FakeContext:
    """Writes the expected outputs of a graph to the addresses that were set."""

    def __init__(self, graph: TinyGraph) -> None:
        self.graph = graph
        self.addresses: dict[str, int] = {}
        self.streams: list[int] = []

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        self.streams.append(stream)
        for name, array in self.graph.expected.items():
            ctypes.memmove(self.addresses[name], array.ctypes.data, array.nbytes)
        return True


def fake_tensorrt(engine: object) -> TensorRT:
    log = SimpleNamespace(errors=["the plan is for another GPU"], warnings=[], clear=lambda: None)
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
    return TensorRT(Flavour.RTX, "1.0", SimpleNamespace(Runtime=lambda log: runtime), log)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    library = FakeLibrary()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    return library


def test_version_and_size_come_from_the_driver(library: FakeLibrary) -> None:
    driver = CudaDriver()
    assert driver.version() == "12.6"
    assert driver.memory_bytes() == 32 * 10**9
    assert driver.is_integrated()


def test_an_error_of_the_driver_has_its_name(library: FakeLibrary) -> None:
    library.statuses["cuInit"] = 100
    with pytest.raises(BackendError, match=r"failed in cuInit: CUDA_ERROR_NO_DEVICE$"):
        CudaDriver()
    library.statuses["cuInit"] = 12345
    with pytest.raises(BackendError, match=r"failed in cuInit: error 12345$"):
        CudaDriver()


@pytest.mark.parametrize("graph", [FLOAT, STEP])
def test_a_plan_runs_with_its_caches_in_place(library: FakeLibrary, graph: TinyGraph) -> None:
    context = FakeContext(graph)
    engine = SimpleNamespace(create_execution_context=lambda: context)
    run = LoadedPlan(fake_tensorrt(engine), b"plan", graph)
    graph.check(run())
    assert context.streams == [77]
    assert set(context.addresses) == set(graph.inputs) | set(graph.expected)
    for name in graph.expected:
        if name.endswith("_next"):
            assert context.addresses[name] == context.addresses[name.removesuffix("_next")]
    assert library.calls.count("cuStreamSynchronize") == 1


def test_an_uploaded_array_is_downloaded_again(library: FakeLibrary) -> None:
    address = CudaDriver().upload(np.arange(4, dtype=np.float32))
    downloaded = np.zeros(4, np.float32)
    CudaDriver().download(address, downloaded)
    assert downloaded.tolist() == [0, 1, 2, 3]


def test_a_plan_that_does_not_load(library: FakeLibrary) -> None:
    with pytest.raises(BackendError, match="its own plan: the plan is for another GPU"):
        LoadedPlan(fake_tensorrt(None), b"plan", FLOAT)
    engine = SimpleNamespace(create_execution_context=lambda: None)
    with pytest.raises(BackendError, match="no execution context"):
        LoadedPlan(fake_tensorrt(engine), b"plan", FLOAT)


def test_a_run_that_fails(library: FakeLibrary) -> None:
    context = FakeContext(FLOAT)
    context.execute_async_v3 = lambda stream: False  # type: ignore[method-assign]
    engine = SimpleNamespace(create_execution_context=lambda: context)
    with pytest.raises(BackendError, match="did not run the plan"):
        LoadedPlan(fake_tensorrt(engine), b"plan", FLOAT)()

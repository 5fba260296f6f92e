"""TensorRT's classes for running engines, over fake engines; only what the backend calls.

Names and results are those of TensorRT-RTX 1.7; `tensorrt/test_backend.py` looks the names up in
the real module. Assertions catch the mistakes that a GPU would not report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.gpu.device import ALIGNMENT
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import TensorRT
from hybrid_deploy.target import Flavour
from tests.fakes.device import FakeBuffer
from tests.fakes.engine import FakeContext, FakeEngine

Mode = Enum("Mode", "NONE INPUT OUTPUT")
Location = Enum("Location", "DEVICE HOST")
Type = Enum("Type", "FLOAT HALF INT64 BOOL")
_TYPES = {"float32": Type.FLOAT, "int64": Type.INT64}


@dataclass
class Log:
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    loaded: list[tuple[bytes, bool]] = field(default_factory=list)

    def clear(self) -> None:
        for messages in (self.warnings, self.errors, self.facts):
            messages.clear()


@dataclass(eq=False)
class Context:
    fake: FakeContext
    log: Log
    eager: bool
    capturable: bool = True
    active_optimization_profile: int = 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle == self.fake.engine.device.stream
        self.active_optimization_profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.active_optimization_profile == 0
        self.fake.set_shapes({name: shape})
        return True

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self.fake.shape(name))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert isinstance(memory, int) and memory % ALIGNMENT == 0
        assert name in {**self.fake.engine.inputs, **self.fake.engine.outputs}
        self.fake.bind(name, FakeBuffer(memory, 1))
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == self.fake.engine.device.stream
        try:
            self.fake.enqueue()
        except BackendError as error:
            self.log.errors.append(f"IExecutionContext::enqueueV3: Error Code 1: {error}")
            return False
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        assert stream == self.fake.engine.device.stream
        return self.capturable


@dataclass(eq=False)
class Engine:
    fake: FakeEngine
    log: Log
    aliased: bool
    largest: int = 8
    host_tensor: str | None = None
    capturable: bool = True

    def __post_init__(self) -> None:
        self.names = [*self.fake.inputs, *self.fake.outputs]
        self.num_io_tensors = len(self.names)
        if self.aliased:  # 10.14 and older have no such method
            self.get_aliased_input_tensor = self.fake.aliases.get

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name in self.fake.inputs else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Type:
        return _TYPES[{**self.fake.inputs, **self.fake.outputs}[name].dtype]

    def get_tensor_location(self, name: str) -> Location:
        return Location.HOST if name == self.host_tensor else Location.DEVICE

    def get_tensor_shape(self, name: str) -> list[int]:
        return list({**self.fake.inputs, **self.fake.outputs}[name].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        assert profile_index == 0
        shape = self.fake.inputs[name].shape
        return [[s if s > 0 else size for s in shape] for size in (1, 2, self.largest)]

    def create_runtime_config(self) -> SimpleNamespace:
        return SimpleNamespace()

    def create_execution_context(self, runtime_config: Any = None) -> Context:
        strategy = "dynamic_shapes_kernel_specialization_strategy"
        eager = getattr(runtime_config, strategy, None) is Strategy.EAGER
        first = not self.fake.contexts
        context = Context(self.fake.context(), self.log, eager, self.capturable)
        context.active_optimization_profile = 0 if first else -1
        return context


Strategy = Enum("Strategy", "LAZY EAGER NONE")


def fake_tensorrt(
    engines: dict[bytes, Engine], log: Log, flavour: Flavour = Flavour.RTX
) -> TensorRT:
    """Returns a vendor module whose runtime loads these plans and no others."""

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Log) -> None:
            assert logger is log

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            log.loaded.append((plan, self.engine_host_code_allowed))
            if plan not in engines:
                log.errors.append("IRuntime::deserializeCudaEngine: Error Code 1: bad plan")
            return engines.get(plan)

    module = SimpleNamespace(Runtime=Runtime, DynamicShapesKernelSpecializationStrategy=Strategy)
    return TensorRT(flavour, "1.7", module, log)

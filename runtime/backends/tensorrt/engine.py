"""A TensorRT engine on a device; loading one runs its native code, so read it from the cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybrid_deploy.errors import BackendError, InputError
from hybrid_deploy.runtime.backends.gpu.device import Buffer, Device
from hybrid_deploy.runtime.backends.gpu.engine import TensorInfo
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import TensorRT, last_error
from hybrid_deploy.target import Flavour

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
_NOT_CAPTURABLE = "TensorRT says that this engine cannot be recorded on a stream"


class TensorRTEngine:
    """A loaded engine.

    Attributes:
        inputs: its inputs by name.
        outputs: its outputs by name.
        aliases: outputs that are written over an input, with that input's name.
        ranges: smallest and largest shape of every input.
        context_bytes: memory of the GPU that each context takes.

    Raises:
        BackendError: TensorRT does not load it here, or it wants a tensor in the host's memory.
    """

    def __init__(
        self,
        vendor: TensorRT,
        plan: bytes,
        graph: str,
        device: Device,
        *,
        brings_runtime: bool = False,
    ) -> None:
        """Loads a plan; `brings_runtime` says that it is version-compatible."""
        self.graph = graph
        self.vendor = vendor
        self.device = device
        vendor.log.clear()
        self._runtime = vendor.module.Runtime(vendor.log)  # must outlive the engine
        if brings_runtime:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BackendError(
                f"TensorRT {vendor.version} does not load the engine of {graph} on "
                f"{device.name}: {last_error(vendor.log)}"
            )
        self.inputs, self.outputs = self._tensors("INPUT"), self._tensors("OUTPUT")
        self.aliases = self._aliases()
        self.context_bytes = int(getattr(self._engine, "device_memory_size_v2", 0))
        self.ranges = {name: self._range(name) for name in self.inputs}

    def context(self) -> TensorRTContext:
        """Makes a context with memory of its own.

        TensorRT-RTX compiles kernels for a shape when it first meets it: at once here, as lazily
        it would exchange them under a recorded graph.
        """
        self.vendor.log.clear()
        if self.vendor.flavour is Flavour.RTX:
            config = self._engine.create_runtime_config()
            config.dynamic_shapes_kernel_specialization_strategy = self.vendor.member(
                "DynamicShapesKernelSpecializationStrategy", "EAGER"
            )
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            reason = last_error(self.vendor.log)
            raise BackendError(f"TensorRT made no context for {self.graph}: {reason}")
        return TensorRTContext(self, context)

    def _tensors(self, mode: str) -> dict[str, TensorInfo]:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return {n: self._info(n) for n in names if engine.get_tensor_mode(n).name == mode}

    def _info(self, name: str) -> TensorInfo:
        dtype = self._engine.get_tensor_dtype(name).name
        if self._engine.get_tensor_location(name).name != "DEVICE":
            raise BackendError(f"the engine of {self.graph} wants {name} in the host's memory")
        return TensorInfo(_DTYPES.get(dtype, dtype), tuple(self._engine.get_tensor_shape(name)))

    def _aliases(self) -> dict[str, str]:
        """Asks TensorRT; before 10.15 it writes nothing in place and has no such question."""
        ask = getattr(self._engine, "get_aliased_input_tensor", lambda name: None)
        found = {name: ask(name) for name in self.outputs}
        return {name: source for name, source in found.items() if source}

    def _range(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if -1 not in (shape := self.inputs[name].shape):
            return shape, shape
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, 0)
        return tuple(smallest), tuple(largest)


class TensorRTContext:
    """One use of an engine: its shapes and the addresses of its tensors."""

    def __init__(self, engine: TensorRTEngine, context: Any) -> None:
        self._engine = engine  # must outlive the context
        self._log = engine.vendor.log
        self._stream = engine.device.stream
        self._graph = engine.graph
        self._context = context
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        # Only an engine's first context has a profile by itself.
        shared = context.active_optimization_profile == 0
        if not (shared or context.set_optimization_profile_async(0, self._stream)):
            raise self._failure("does not share its profile between contexts")

    @property
    def nbytes(self) -> int:
        """Memory of the GPU that it holds."""
        return self._engine.context_bytes

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Sets the shapes of inputs.

        Raises:
            InputError: the engine was built for other sizes.
        """
        self._log.clear()  # TensorRT's remarks would pile up
        for name, shape in shapes.items():
            if self._shapes.get(name) == shape:
                continue
            self._check_range(name, shape)
            if not self._context.set_input_shape(name, shape):
                raise self._failure(f"does not take {name} of shape {_text(shape)}")
            self._shapes[name] = shape

    def _check_range(self, name: str, shape: tuple[int, ...]) -> None:
        smallest, largest = self._engine.ranges[name]
        sizes = zip(shape, smallest, largest, strict=True)
        if not all(low <= size <= high for size, low, high in sizes):
            raise InputError(
                f"the engine of {self._graph} takes {name} of {_text(smallest)} to "
                f"{_text(largest)}, got {_text(shape)}; build one for it: hybrid-deploy build "
                "BUNDLE --target local --profile NAME=MIN:TYPICAL:MAX"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor, once those of all inputs are set."""
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise self._failure(f"does not know the shape of {name} before it runs")
        return shape

    def bind(self, name: str, buffer: Buffer) -> None:
        """Says where a tensor lies."""
        if self._addresses.get(name) == buffer.address:
            return
        if not self._context.set_tensor_address(name, buffer.address):
            raise self._failure(f"does not take the address of {name}")
        self._addresses[name] = buffer.address

    def enqueue(self) -> None:
        """Asks the GPU for one run."""
        if not self._context.execute_async_v3(self._stream):
            raise self._failure("did not run")

    def capture_obstacle(self) -> str | None:
        """Says why `enqueue` cannot be recorded, as far as this TensorRT can be asked."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return None if ask is None or ask(self._stream) else _NOT_CAPTURABLE

    def close(self) -> None:
        """Returns its memory back."""
        self._context = None

    def _failure(self, what: str) -> BackendError:
        return BackendError(f"TensorRT: {self._graph} {what}: {last_error(self._log)}")


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
